"""The hyper-parameters that several editors have.

Keys keep the names of the published JSON files. The module templates are optional: left out, they are derived from the model.
A key of a published file that is no field is either without effect (`ignored`, said in a warning) or served at its usual value
only (`fixed`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from common.errors import UserError
from .configuration import Bound, Configuration, Count, NotNegative
from .core.prompts import FACT_TOKENS

Blocks = Annotated[list[int], Bound(lambda blocks: blocks and min(blocks) >= 0 and len(set(blocks)) == len(blocks),
                                    "must be a non-empty list of different block numbers, counted from 0")]
FactToken = Annotated[str, Bound(lambda name: name in FACT_TOKENS, f"is none of {', '.join(FACT_TOKENS)}")]
Multiplier = Annotated[float, Bound(lambda number: 0 < number < math.inf,
                                    "must be above 0 (without it all documents are read)")]
SubjectPrompt = Annotated[str, Bound(lambda text: text.count("{}") == 1, "needs exactly one '{}', where the subject stands")]

# Keys that the files of the unified and efficient model editing repositories have besides those of MEMIT's.
UNIFIED_IGNORED = {
    "layer_selection": "the published code reads it nowhere",
    "mom2_adjustment": "the second moment is always used",
    "proj_dim": "the width of the keys is the model's",
    "skill_lambda": "read only with skill_preservation",
    "skill_sample_size": "read only with skill_preservation",
}
UNIFIED_FIXED = {
    "skill_preservation": (False, "its function is missing from the published code too"),
    "random_vector_preservation": (False, "the keys to preserve are those of the corpus"),
    "identity_cov": (False, "the second moment is that of the corpus"),
    "shuffle_text": (False, "texts are read as they stand"),
    "wikipedia_lang": ("en", "for another language set mom2_dataset, to wikimedia/wikipedia:20231101.ca for example"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HParams(Configuration):
    """Fields that every editor of transformer weights has."""

    layers: Blocks
    """Blocks whose weights are edited, in the order they are edited."""

    rewrite_module_tmp: str | None = None
    """Edited module of a block, "transformer.h.{}.mlp.c_proj"; None: derived from the model, like those below."""
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None

    def templates(self) -> dict[str, str]:
        """The module templates that the file sets, for `find_sites`."""
        names = [f.name for f in dataclasses.fields(HParams) if f.name != "layers"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHParams(HParams):
    """The optimisation of target hidden states (core/values.py) and the statistics, as ROME, MEMIT and their kin share them."""

    fact_token: FactToken
    """Which token stands for the subject: one of `core.prompts.FACT_TOKENS`, explained at `core.prompts.locate`."""
    v_num_grad_steps: Count
    """Forward passes of the optimisation; one fewer Adam steps are taken."""
    v_lr: NotNegative
    """Step of Adam."""
    v_loss_layer: int | None = None
    """Block whose output, through final norm and head, is scored; None: the last block. Not read by ROME, which scores at the
    model's output."""
    v_weight_decay: NotNegative
    """Weight of |delta| / |z_0|^2; higher keeps the edit smaller."""
    clamp_norm_factor: NotNegative
    """|delta| is kept at most this many times |z_0|; higher edits harder and harms neighbours more."""
    kl_factor: NotNegative
    """Weight of the KL term that holds `kl_prompt` in place."""
    kl_prompt: SubjectPrompt = "{} is a"
    """What is said of the subject where it shall stay as it is; in the language of the prompts."""
    target_tokens: ClassVar[str] = "ids"
    """How a target of several tokens is put behind a prompt: as tokens, or ("text") as text that is tokenised anew (MEMAT's
    program)."""
    end_of_text: bool = False
    """Whether the tokenizer's end-of-text token is part of the target, so that an answer stops behind it; published: it is
    not."""

    mom2_dataset: str
    """Corpus of the second moments: a Hugging Face data set, "world" (the built-in world's), or the path of a .jsonl (field
    `text`) or .txt file."""
    mom2_n_samples: int
    """Documents read from it."""
    mom2_dtype: str = "float32"
    """Keys are rounded to it and added in it; float16: added in float32."""
    mom2_tokens: Count | None = None
    """Tokens read of a document, at most; None: as many as the model has positions for."""
    dynamic_multiplier: Multiplier | None = None
    """FastMEMIT's m: the second moment is that of the first ceil(m * d_in) tokens of the documents; None: of all their
    tokens."""
    dynamic: bool = False
    """Collect the second moment anew for each batch, on the model as edited so far; false: once, on the unedited model."""
    relative_ridge: NotNegative = 0.0
    """Where the second moment C has not full rank: this many times its mean eigenvalue is added to it; 0: that is an error."""
    context_seed: int = 0
    """Seed of the sampled context templates."""

    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "target_tokens": ("ids", 'they are put behind a prompt as they are; MEMAT\'s profile "paper" alone makes text of them'),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.mom2_tokens is not None and self.dynamic:
            raise UserError(f"mom2_tokens: {self.mom2_tokens} does not go with dynamic")
