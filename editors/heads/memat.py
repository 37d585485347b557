"""MEMAT: MEMIT, then corrections of the attention heads that know about it (Tamayo et al., Findings of ACL 2024)."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError
from editors.base import Task
from editors.closed_form.memit import MEMIT, MEMITHParams
from editors.core import ranks
from editors.core.contexts import as_groups, context_templates, contexts_fingerprint
from editors.core.key_memory import KeyMemory
from editors.core.prompts import check_lengths, locate_all, parse_requests, Request
from editors.core.sites import find_sites, longest_context, Sites
from editors.edit import Edit
from . import corrections, relevance
from .outputs import check_heads, Head, head_shape
from .relevance import Corrections, Relevance

PROFILES: dict[str, dict[str, Any]] = {
    "default": dict(
        residual="refresh", lookup="offsets", target_tokens="ids", mom2_dtype="float32", same_layer="sum", head_contexts="own",
        train_position="last_real", head_norm="per_head", short_batch="own",
    ),
    "paper": dict(
        residual="stale", lookup="separate", target_tokens="text", mom2_dtype="float16", same_layer="last", head_contexts="edits",
        train_position="legacy", head_norm="shared", short_batch="full", correction_kl_factor=0.0,
        mom2_tokens=1000,
    ),
}
"""What a setting that is left open is in each profile."""


@dataclass(frozen=True, kw_only=True)
class MEMATHParams(MEMITHParams):
    profile: Literal["default", "paper"] = "default"
    """default: the method as the paper says it. paper: what the published code computes. Decides the settings below that are left
    open (null); each can be set alone."""

    residual: Literal["refresh", "stale"] | None = None
    mom2_dtype: str | None = None
    target_tokens: Literal["ids", "text"] | None = None
    lookup: Literal["offsets", "separate"] | None = None
    """How the subject's last token is found: by character offsets, or by tokenising what stands before it and it by themselves."""
    contexts: Literal["sampled", "greedy"] = "greedy"
    context_groups: Literal["two", "each"] = "each"

    top_num_heads: int = 16
    """K: heads that are corrected. More spread the correction thinner; the paper's best is 16 of 2,272."""
    heads: list[list[int]] | None = None
    """(layer, head) pairs to correct, best first; None: the K whose probes do best."""
    voters: Literal["correct", "all"] = "correct"
    """Facts that the probes learn from: those whose edit took, or all."""
    val_share: float = 0.3
    """Share of the voting facts that the heads' accuracy is measured on."""
    probe_seed: int | None = 123
    """Of the order in which voting facts are split; None: as they stand."""
    probe_token: Literal["target", "prompt"] = "target"
    """Where heads are read: at the last token of prompt and object, or of the prompt, which predicts the object. With "prompt" only
    records whose new and old object have prompts of their own (articles that agree) tell anything."""
    head_choice: Literal["probe", "random"] = "probe"
    """The heads whose probes do best, or, as a control, any: one draw, by probe_seed (null: 0)."""
    held_out: float = 0.0
    """Share of the facts, the last ones, that are edited but neither choose heads nor train corrections."""

    same_layer: Literal["sum", "last"] | None = None
    """Corrections of one layer's heads add up, or only the last counts."""
    head_contexts: Literal["own", "edits"] | None = None
    """Contexts for training corrections: in their own language, or those of MEMIT's edits (with "{} is a" as KL prompt)."""
    head_context_starts: list[str] | None = None
    """As context_starts, in the language of the corrections; None: context_starts."""
    head_kl_prompt: str | None = None
    """As kl_prompt, in the language of the corrections; None: kl_prompt."""
    train_position: Literal["last_real", "all", "legacy"] | None = None
    """Where corrections stand while they are trained, see corrections.py; once trained they are added at every token."""
    head_norm: Literal["per_head", "shared"] | None = None
    """What clamp and weight decay are relative to: the size of each head's output, or of one head's for all."""
    short_batch: Literal["own", "full"] | None = None
    """A last, shorter batch is divided by its own size, or by correction_batch."""
    correction_kl_factor: float | None = None
    """Weight of the KL term; None: kl_factor."""
    correction_lr: float | None = None
    """Step of Adam; None: v_lr."""
    correction_clamp: float | None = None
    """None: clamp_norm_factor."""
    correction_weight_decay: float | None = None
    """None: v_weight_decay."""
    correction_batch: int = 32
    """Facts a step."""
    correction_epochs: int = 1
    """Passes over the facts."""

    ignored: ClassVar[Mapping[str, str]] = MEMITHParams.ignored

    def __post_init__(self):
        for name, value in PROFILES[self.profile].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.lookup == "separate" and self.fact_token == "subject_last":
            object.__setattr__(self, "fact_token", "subject_last_separate")
        followed = {
            "correction_kl_factor": "kl_factor", "correction_lr": "v_lr", "correction_clamp": "clamp_norm_factor",
            "correction_weight_decay": "v_weight_decay",
        }
        for name, other in followed.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self, other))
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: {getattr(self, name)} must be a finite number, not below 0")
        super().__post_init__()
        for name in ("top_num_heads", "correction_batch", "correction_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1")
        if not 0 < self.val_share < 1:
            raise UserError(f"val_share: {self.val_share} must be above 0 and below 1")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out: {self.held_out} must be at least 0 and below 1")
        if self.heads is not None and not self.heads:
            raise UserError("heads: an empty list; leave it out to have them chosen")
        if self.head_kl_prompt is not None and self.head_kl_prompt.count("{}") != 1:
            raise UserError(f"head_kl_prompt: {self.head_kl_prompt!r} needs exactly one '{{}}', where the subject stands")


HeadOutputs = Float[Tensor, "requests two layers heads size"]


class MEMAT(MEMIT):
    """MEMIT's edit of the MLPs, and biases of the attention's output projections that correct the heads which tell the new facts from
    the old ones best. `edit` does all; a program that measures in between takes the steps one by one:

        with editor.memit(...).applied(model):
            found = editor.relevance(model, tok, requests)
            edit = editor.correct(model, tok, requests, found.best(16))
    """

    name = "MEMAT"
    hparams_class: ClassVar[type[MEMATHParams]] = MEMATHParams
    hparams: MEMATHParams

    def edit(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], context_templates: Sequence | None = None,
        z_cache: str | os.PathLike | None = None, progress: bool = True, memory: KeyMemory | None = None,
        *, heads_requests: Sequence[Mapping | Request] | None = None, heads_templates: Sequence | None = None,
    ) -> Edit:
        """As `Editor.edit`. heads_requests: facts that heads are chosen and corrected for, the same ones in another language, say;
        by default `requests`. They need a `target_true` unless the hparams name the heads. heads_templates: their contexts, by
        default context_templates or what the hparams say.
        """
        heads_requests = requests if heads_requests is None else heads_requests
        parsed = self._parsed(model, tok, heads_requests[: self.for_heads(len(heads_requests))])
        templates = self.head_templates(model, tok, heads_templates or context_templates)
        check_lengths(tok, parsed, templates[1:], longest_context(model))
        self.check(model, tok, parsed)
        memit = self.memit(model, tok, requests, context_templates, z_cache, progress, memory)
        started = time.perf_counter()
        with memit.applied(model), torch.inference_mode(False), torch.enable_grad():
            # One process's, where several work: theirs may differ in the last bits.
            found = None if self.hparams.heads is not None else ranks.same(self.relevance(model, tok, parsed, progress=progress))
            heads = self.hparams.heads or self.choose(found, self.hparams.top_num_heads)
            made = self.correct(model, tok, parsed, heads, templates, progress)
            biases = self.fold(model, made)
        seconds = memit.info["seconds"] | {"heads": time.perf_counter() - started}
        seconds["total"] += seconds["heads"]
        info = memit.info | {"seconds": seconds, **biases.info}
        if found is not None:
            info |= {"voters": len(found.voters), "probe_accuracy": found.accuracy.tolist()}
        return memit.plus(biases, info)

    def memit(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], context_templates: Sequence | None = None,
        z_cache: str | os.PathLike | None = None, progress: bool = True, memory: KeyMemory | None = None,
    ) -> Edit:
        """MEMIT's part alone. `info` tells, too, of how many facts the two ways of `lookup` find other tokens."""
        edit = super().edit(model, tok, requests, context_templates, z_cache, progress, memory)
        asked = [(request.prompt, request.subject) for request in parse_requests(requests, tok)]
        places = zip(locate_all(tok, asked, "subject_last"), locate_all(tok, asked, "subject_last_separate"))
        return Edit(edit.changes, edit.info | {"lookups_differ": sum(one.index != other.index for one, other in places)})

    def prepare(self, task: Task) -> dict[str, Any]:
        templates = self.head_templates(task.model, task.tok, task.context_templates)
        return super().prepare(task) | {"contexts of corrections": contexts_fingerprint(templates)}

    def head_templates(self, model: nn.Module, tok, given: Sequence | None = None) -> list[str]:
        """Contexts for training corrections. Ask for them before the model is edited: they are the unedited model's, and kept."""
        if given is not None:
            return [template for group in as_groups(given) for template in group]
        hp = self.hparams
        own = hp.head_contexts == "own" and hp.head_context_starts is not None
        kind = "memit" if hp.contexts == "sampled" else "greedy"
        groups = context_templates(
            model, tok, kind, seed=hp.context_seed, starts=hp.head_context_starts if own else hp.context_starts
        )
        return [template for group in groups for template in group]

    def features(self, model: nn.Module, tok, requests: Sequence[Mapping | Request], progress: bool = True) -> HeadOutputs:
        """What probes and directions are made of: every head's output behind the new and the old facts, of the model as it is."""
        return relevance.features(model, tok, self._parsed(model, tok, requests), self.sites(model), self.hparams.probe_token, progress)

    def relevance(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], voters: Sequence[int] | None = None, progress: bool = True,
        outputs: HeadOutputs | None = None, facts: Sequence[int] | None = None,
    ) -> Relevance:
        """How well each head of the model, edited as it is, tells the new facts from the old ones.

        voters: positions of the requests that the probes learn from; by default as the hparams say. outputs: what `features` gave.
        facts: which fact each request tells, where the same ones are there in several languages, so that none is in both parts.
        Raises UserError for a request without target_true, or too few voters.
        """
        parsed = self._parsed(model, tok, requests)
        if outputs is None:
            outputs = self.features(model, tok, parsed, progress)
        if voters is None:
            voters = self._voters(model, tok, parsed)
        return relevance.relevance(outputs, voters, self.hparams.val_share, self.hparams.probe_seed, facts)

    def for_heads(self, facts: int) -> int:
        """How many of so many facts, the first ones, heads are chosen and corrected by."""
        return facts - int(facts * self.hparams.held_out)

    def choose(self, found: Relevance, number: int) -> list[Head]:
        """The heads to correct, in the order of their rank. Raises UserError if the model does not have so many."""
        best = found.best(number)
        if self.hparams.head_choice == "probe":
            return best
        layers, heads = found.accuracy.shape
        every = [(layer, head) for layer in range(layers) for head in range(heads)]
        return random.Random(self.hparams.probe_seed or 0).sample(every, len(every))[:number]

    def correct(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], heads: Sequence[Head],
        templates: Sequence[str] | Sequence[Sequence[str]] | None = None, progress: bool = True, kl_prompts: Sequence[str] | None = None,
    ) -> Corrections:
        """Trained correction vectors for these heads, of the model as it is. templates: as `head_templates` gives them, or for
        each request its own, as kl_prompts are (several languages).

        Raises UserError for heads that the model lacks, and for vectors that are not finite.
        """
        parsed, sites = self._parsed(model, tok, requests), self.sites(model)
        pairs = check_heads(heads, model, sites)
        templates = self.head_templates(model, tok) if templates is None else templates
        with torch.inference_mode(False), torch.enable_grad():
            vectors = corrections.train(model, tok, parsed, pairs, templates, sites, self.correction_settings(), progress=progress,
                                        kl_prompts=kl_prompts)
        return one_for_all(pairs, vectors)

    def correction_settings(self) -> corrections.Settings:
        hp = self.hparams
        own = hp.head_contexts == "own"
        return corrections.Settings(
            lr=hp.correction_lr, clamp=hp.correction_clamp, weight_decay=hp.correction_weight_decay, kl_factor=hp.correction_kl_factor,
            kl_prompt=(hp.head_kl_prompt or hp.kl_prompt) if own else "{} is a", fact_token=hp.fact_token,
            target_tokens=hp.target_tokens, batch=hp.correction_batch, epochs=hp.correction_epochs, position=hp.train_position,
            norm=hp.head_norm, divide_by_full_batch=hp.short_batch == "full",
        )

    def check(self, model: nn.Module, tok, requests: Sequence[Request]) -> None:
        """Raises UserError, before the work, for heads that the model lacks and facts that can't be probed."""
        sites = self.sites(model)
        if self.hparams.heads is None:
            count, _ = head_shape(model, sites)
            if self.hparams.top_num_heads > sites.layers * count:
                raise UserError(
                    f"top_num_heads: {self.hparams.top_num_heads} heads can't be chosen, the model has {sites.layers * count}"
                )
            relevance.sentence_rows(model, tok, requests, self.hparams.probe_token)
        else:
            check_heads(self.hparams.heads, model, sites)

    def fold(self, model: nn.Module, made: Corrections) -> Edit:
        """The corrections as an edit of biases alone."""
        return relevance.folded(model, made, self.sites(model), self.hparams.same_layer == "last", {"heads": [list(head) for head in made.heads]})

    def sites(self, model: nn.Module) -> Sites:
        """Where things are in the model, by the hparams' templates where they name some. Raises UserError if it is not clear."""
        return find_sites(model, self.hparams.templates())

    def _voters(self, model: nn.Module, tok, requests: Sequence[Request]) -> list[int]:
        everyone = range(len(requests))
        if self.hparams.voters == "correct":
            everyone = relevance.said(model, tok, requests, self.sites(model)).nonzero()[:, 0].tolist()
        return self.telling(tok, requests, everyone)

    def telling(self, tok, requests: Sequence[Mapping | Request], voters: Sequence[int]) -> list[int]:
        """Those of the voters whose two facts can be told apart where the heads are read: with probe_token "prompt" not those that have
        one prompt for both objects."""
        if self.hparams.probe_token == "target":
            return list(voters)
        both = [relevance.prompts(request) for request in parse_requests(requests, tok)]
        return [i for i in voters if both[i][0] != both[i][1]]

    def _parsed(self, model: nn.Module, tok, requests: Sequence[Mapping | Request]) -> list[Request]:
        parsed = parse_requests(requests, tok)
        if not parsed:
            raise UserError("no requests: give at least one")
        check_lengths(tok, parsed, ["{}"], longest_context(model))
        return parsed


def one_for_all(heads: list[Head], vectors: Float[Tensor, "heads size"]) -> Corrections:
    """The first process's, in every process. Raises UserError for vectors that are not finite."""
    heads, vectors = ranks.same((heads, vectors))
    if not torch.isfinite(vectors).all():
        raise UserError("the correction vectors are not finite: load the model in a wider dtype, or lower the learning rate")
    return Corrections(heads, vectors)
