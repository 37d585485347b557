"""MEMAT: MEMIT, then corrections of the attention heads that know about it (Tamayo et al., Findings of ACL 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from editors.base import Task
from editors.configuration import NotNegative
from editors.core.contexts import as_groups, context_templates, contexts_fingerprint
from editors.core.prompts import check_lengths, Request
from editors.core.modules import longest_context
from editors.hparams import SubjectPrompt
from . import training
from .corrections import Corrections, one_for_all
from .head_editor import HeadEditor, HeadHParams
from .outputs import check_heads, Head


@dataclass(frozen=True, kw_only=True)
class MEMATHParams(HeadHParams):
    """MEMAT's keys: the training of the corrections."""

    head_context_starts: list[str] | None = None
    """As context_starts, in the language of the corrections; None: context_starts."""
    head_kl_prompt: SubjectPrompt | None = None
    """As kl_prompt, in the language of the corrections; None: kl_prompt."""
    train_position: Literal["last_real", "all", "legacy"] | None = None
    """Where corrections stand while they are trained, see training.py; once trained they are added at every token. None: the
    profile's."""
    correction_lr: NotNegative | None = None
    """Step of Adam; None: v_lr."""

    def __post_init__(self):
        super().__post_init__()
        self._fill(train_position=self.published.train_position, correction_lr=self.v_lr)


class MEMAT(HeadEditor):
    """MEMIT's edit, then vectors trained for the chosen heads so that the model says the new targets."""

    name = "MEMAT"
    hparams_class: ClassVar[type[MEMATHParams]] = MEMATHParams
    hparams: MEMATHParams

    @property
    def overwrites(self) -> bool:
        return self.hparams.published.same_layer == "last"

    def prepare(self, task: Task) -> dict[str, Any]:
        templates = self.head_templates(task.model, task.tok, task.context_templates)
        return super().prepare(task) | {"contexts of corrections": contexts_fingerprint(templates)}

    def head_templates(self, model: nn.Module, tok, given_templates: Sequence | None = None) -> list[str]:
        """Contexts for training corrections. Ask for them before the model is edited: they are the unedited model's, and
        kept."""
        groups = given_templates and as_groups(given_templates)
        if not groups:
            hp = self.hparams
            starts = hp.head_context_starts if hp.published.head_contexts == "own" else None
            groups = context_templates(model, tok, "greedy", seed=hp.context_seed, starts=starts or hp.context_starts)
        return [template for group in groups for template in group]

    def correct(
        self, model: nn.Module, tok, requests: Sequence[Request], heads: Sequence[Head],
        templates: Sequence[str] | Sequence[Sequence[str]] | None = None, progress: bool = True,
        kl_prompts: Sequence[str] | None = None,
    ) -> Corrections:
        """Trained correction vectors for these heads, of the model as it is. templates: as `head_templates` gives them, or for
        each request its own, as kl_prompts are (several languages).

        Raises UserError for heads that the model lacks, and for vectors that are not finite.
        """
        decoder = self.decoder(model, tok)
        pairs = check_heads(heads, decoder)
        templates = self.head_templates(model, tok) if templates is None else templates
        with torch.inference_mode(False), torch.enable_grad():
            vectors = training.train(
                decoder, requests, pairs, templates, self.settings(), progress=progress, kl_prompts=kl_prompts)
        return one_for_all(pairs, vectors)

    def settings(self) -> training.Settings:
        """How corrections are trained."""
        hp, profile = self.hparams, self.hparams.published
        return training.Settings(
            lr=hp.correction_lr, clamp=hp.clamp_norm_factor, weight_decay=hp.v_weight_decay,
            kl_factor=hp.kl_factor if profile.correction_kl else 0.0,
            kl_prompt=(hp.head_kl_prompt or hp.kl_prompt) if profile.head_contexts == "own" else "{} is a",
            fact_token=hp.fact_token, target_tokens=hp.target_tokens, end_of_text=hp.end_of_text,
            position=hp.train_position, norm=profile.head_norm, divide_by_full_batch=profile.full_batch,
        )

    def _corrector(self, task: Task) -> Callable[[Sequence[Head]], Corrections]:
        templates = self.head_templates(task.model, task.tok, task.context_templates)
        checked = templates if self.hparams.end_of_text else templates[1:]  # a Task is of the bare prompt and target
        check_lengths(task.tok, task.requests, checked, longest_context(task.model), self.hparams.end_of_text)
        return lambda heads: self.correct(task.model, task.tok, task.requests, heads, templates, task.progress)
