"""What MEMAT and ITI share: MEMIT's edit of the MLPs, then biases that correct the attention heads which know about it."""

import os
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError
from editors.base import Task, what_is_said
from editors.closed_form.memit import MEMIT, MEMITHParams
from editors.closed_form.prepared import prepare, Prepared
from editors.closed_form.spread import SpreadHParams
from editors.configuration import Bound, Configuration, Count, ProperShare
from editors.core import ranks
from editors.core.decoder import Decoder
from editors.core.key_memory import KeyMemory
from editors.core.prompts import locate_all, Request
from editors.edit import Edit
from . import relevance
from .corrections import Corrections, folded
from .outputs import check_heads, Head, head_shape
from .profiles import Profile, PROFILES
from .relevance import Relevance

HeadOutputs = Float[Tensor, "requests two layers heads size"]
HeldOut = Annotated[float, Bound(lambda share: 0 <= share < 1, "must be at least 0 and below 1")]


@dataclass(frozen=True, kw_only=True)
class HeadHParams(MEMITHParams):
    """Keys of MEMAT and ITI: MEMIT's, and how heads are chosen."""

    profile: Literal["default", "paper"] = "default"
    """default: the method as the paper says it. paper: what the published code computes (profiles.py)."""
    mom2_dtype: str | None = None
    """None: the profile's, as is mom2_tokens."""

    top_num_heads: Count = 16
    """K: heads that are corrected. More spread the correction thinner; the paper's best is 16 of 2,272."""
    heads: list[list[int]] | None = None
    """(layer, head) pairs to correct, best first; None: the K whose probes do best."""
    voters: Literal["correct", "all"] = "correct"
    """Facts that the probes learn from: those whose edit took, or all."""
    val_share: ProperShare = 0.3
    """Share of the voting facts that the heads' accuracy is measured on."""
    probe_seed: int | None = 123
    """Of the order in which voting facts are split; None: as they stand."""
    probe_token: Literal["target", "prompt"] = "target"
    """Where heads are read: at the last token of prompt and object, or of the prompt, which predicts the object. With "prompt"
    only records whose new and old object have prompts of their own (articles that agree) tell anything."""
    head_choice: Literal["probe", "random"] = "probe"
    """The heads whose probes do best, or, as a control, any: one draw, by probe_seed (null: 0)."""
    held_out: HeldOut = 0.0
    """Share of the facts, the last ones, that are edited but neither choose heads nor train corrections."""

    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = SpreadHParams.fixed | {
        key: (value, 'profile ("default" or "paper") decides it, together with all in which the published code differs')
        for key, value in {
            "residual": "refresh", "contexts": "greedy", "context_groups": "each", "lookup": "offsets", "same_layer": "sum",
            "head_contexts": "own", "head_norm": "per_head", "short_batch": "own", "correction_kl_factor": None,
            "correction_clamp": None, "correction_weight_decay": None, "correction_batch": 32, "correction_epochs": 1,
        }.items()
    }

    def __post_init__(self):
        Configuration.__post_init__(self)  # first of all: is it a profile?
        self._fill(mom2_dtype=self.published.mom2_dtype, mom2_tokens=self.published.mom2_tokens)
        if self.published.lookup == "separate" and self.fact_token == "subject_last":
            object.__setattr__(self, "fact_token", "subject_last_separate")
        super().__post_init__()
        if self.edited_key_memory and self.published.residual == "stale":
            raise UserError("edited_key_memory: remembers the keys of the model with the whole edit in it, which the stale "
                            f"residual of the profile {self.profile} does not give")
        if self.heads is not None and not self.heads:
            raise UserError("heads: an empty list; leave it out to have them chosen")

    @property
    def published(self) -> Profile:
        """What the profile stands for."""
        return PROFILES[self.profile]

    @property
    def target_tokens(self) -> str:
        return self.published.target_tokens

    def _fill(self, **values: Any) -> None:
        """Gives the fields that are None these values."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


class HeadEditor(MEMIT):
    """MEMIT's edit, and biases of the attention's output projections that correct the heads which tell the new facts from the
    old ones best. A subclass says how they are corrected. `edit` does all; a program that measures in between takes the steps
    one by one:

        facts = parse_requests(requests, tok)
        with editor.memit(model, tok, requests).applied(model):
            heads = editor.relevance(model, tok, facts).best(16)
            edit = editor.fold(model, editor.correct(model, tok, facts, heads))
    """

    hparams_class: ClassVar[type[HeadHParams]]
    hparams: HeadHParams
    overwrites: bool = False
    """Whether of the corrected heads of one layer only the last counts."""

    def tells_what_is_said(self, model: nn.Module) -> bool:
        return False  # of the whole edit it is told below, not of MEMIT's part

    def edit(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], context_templates: Sequence | None = None,
        z_cache: str | os.PathLike | None = None, progress: bool = True, memory: KeyMemory | None = None,
        *, heads_requests: Sequence[Mapping | Request] | None = None, heads_templates: Sequence | None = None,
    ) -> Edit:
        """As `Editor.edit`. heads_requests: facts that heads are chosen and corrected for, the same ones in another language,
        say; by default `requests`. They need a `target_true` unless the hparams name the heads. heads_templates: their
        contexts, by default context_templates or what the hparams say.
        """
        task = Task.of(model, tok, requests, context_templates, z_cache, progress, memory)
        others = task.requests if heads_requests is None else heads_requests
        return self._edit(task, Task.of(model, tok, others, heads_templates or context_templates, progress=progress))

    def memit(self, model: nn.Module, tok, requests: Sequence[Mapping | Request], *options, **more) -> Edit:
        """MEMIT's part alone, called as `Editor.edit`. `info` tells, too, of how many facts the two ways of looking the
        subject's last token up find other tokens."""
        return self._memit(Task.of(model, tok, requests, *options, **more))

    def _edit(self, task: Task, for_heads: Task | None = None) -> Edit:
        model, tok, hp, for_heads = task.model, task.tok, self.hparams, for_heads or task
        facts = for_heads.requests[: self.for_heads(len(for_heads.requests))]
        self.check(model, tok, facts)
        correct = self._corrector(replace(for_heads, requests=facts))
        memit = self._memit(task)
        started = time.perf_counter()
        with memit.applied(model), torch.inference_mode(False), torch.enable_grad():
            # One process's, where several work: theirs may differ in the last bits.
            probed = None if hp.heads is not None else ranks.same(self.relevance(model, tok, facts, progress=task.progress))
            biases = self.fold(model, correct(hp.heads or self.choose(probed, hp.top_num_heads)))
        seconds = memit.info["seconds"] | {"heads": time.perf_counter() - started}
        seconds["total"] += seconds["heads"]
        info = memit.info | {"seconds": seconds, **biases.info}
        if probed is not None:
            info |= {"voters": len(probed.voters), "probe_accuracy": probed.accuracy.tolist()}
        edit = memit.plus(biases, info)
        return Edit(edit.changes, edit.info | what_is_said(edit, task))

    def _memit(self, task: Task) -> Edit:
        edit = super()._edit(task)
        prompts = [(request.prompt, request.subject) for request in task.requests]
        places = zip(locate_all(task.tok, prompts, "subject_last"), locate_all(task.tok, prompts, "subject_last_separate"))
        return Edit(edit.changes, edit.info | {"lookups_differ": sum(one.index != other.index for one, other in places)})

    @property
    def refreshes(self) -> bool:
        return self.hparams.published.residual == "refresh"

    def contexts(self, task: Task) -> Prepared:
        """As MEMAT has them: each start with its likeliest tokens, and the same weight for each context."""
        return prepare(task, self.hparams, "greedy", starts=self.hparams.context_starts)

    @abstractmethod
    def _corrector(self, task: Task) -> Callable[[Sequence[Head]], Corrections]:
        """Called on the unedited model: what makes corrections of heads once MEMIT's edit is in it. task: the facts that heads
        are corrected for, and their contexts where they are given. Raises UserError for what does not fit."""

    def features(self, model: nn.Module, tok, requests: Sequence[Request], progress: bool = True) -> HeadOutputs:
        """What probes and directions are made of: every head's output behind the new and the old facts, of the model as it
        is."""
        return relevance.features(self.decoder(model, tok), requests, self.hparams.probe_token, progress)

    def relevance(
        self, model: nn.Module, tok, requests: Sequence[Request], voters: Sequence[int] | None = None, progress: bool = True,
        outputs: HeadOutputs | None = None, facts: Sequence[int] | None = None,
    ) -> Relevance:
        """How well each head of the model, edited as it is, tells the new facts from the old ones.

        voters: positions of the requests that the probes learn from; by default as the hparams say. outputs: what `features`
        gave. facts: which fact each request tells, where the same ones are there in several languages, so that none is in both
        parts. Raises UserError for a request without target_true, or too few voters.
        """
        if outputs is None:
            outputs = self.features(model, tok, requests, progress)
        if voters is None:
            voters = self.voters(model, tok, requests)
        return relevance.probe(outputs, voters, self.hparams.val_share, self.hparams.probe_seed, facts)

    def for_heads(self, facts: int) -> int:
        """How many of so many facts, the first ones, heads are chosen and corrected by."""
        return facts - int(facts * self.hparams.held_out)

    def choose(self, probed: Relevance, number: int) -> list[Head]:
        """The heads to correct, in the order of their rank. Raises UserError if the model does not have so many."""
        best = probed.best(number)
        if self.hparams.head_choice == "probe":
            return best
        layers, heads = probed.accuracy.shape
        every = [(layer, head) for layer in range(layers) for head in range(heads)]
        return random.Random(self.hparams.probe_seed or 0).sample(every, len(every))[:number]

    def check(self, model: nn.Module, tok, requests: Sequence[Request]) -> None:
        """Raises UserError, before the work, for heads that the model lacks and facts that can't be probed."""
        decoder = self.decoder(model, tok)
        if self.hparams.heads is None:
            heads = decoder.sites.layers * head_shape(decoder)[0]
            if self.hparams.top_num_heads > heads:
                raise UserError(f"top_num_heads: {self.hparams.top_num_heads} heads can't be chosen, the model has {heads}")
            relevance.sentence_rows(decoder, requests, self.hparams.probe_token)
        else:
            check_heads(self.hparams.heads, decoder)

    def fold(self, model: nn.Module, corrections: Corrections) -> Edit:
        """The corrections as an edit of biases alone."""
        info = {"heads": [list(head) for head in corrections.heads]}
        return folded(self.decoder(model), corrections, self.overwrites, info)

    def decoder(self, model: nn.Module, tok=None) -> Decoder:
        """The model with its sites, by the hparams' templates where they name some. Raises UserError if it is not clear."""
        return Decoder.of(model, tok, self.hparams.templates())

    def voters(self, model: nn.Module, tok, requests: Sequence[Request]) -> list[int]:
        """Positions of the requests that the probes learn from, as the hparams say."""
        everyone = range(len(requests))
        if self.hparams.voters == "correct":
            everyone = relevance.says_targets(self.decoder(model, tok), requests).nonzero()[:, 0].tolist()
        return self.telling(requests, everyone)

    def telling(self, requests: Sequence[Request], voters: Sequence[int]) -> list[int]:
        """Those of the voters whose two facts can be told apart where the heads are read: with probe_token "prompt" not those
        that have one prompt for both objects."""
        if self.hparams.probe_token == "target":
            return list(voters)
        pairs = [relevance.prompt_pair(request) for request in requests]
        return [i for i in voters if pairs[i][0] != pairs[i][1]]
