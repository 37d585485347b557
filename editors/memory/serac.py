"""SERAC: edits are kept as texts, and inputs in their scope go to a small model that reads the edit (Mitchell et al. 2022b)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Self

from common.errors import UserError
from editors.core.prompts import pad_batch, pad_id
from editors.learned.editable import Editable, forward
from editors.learned.episode import Batch
from editors.learned.losses import first_scored, IGNORED, wide
from editors.learned.model_kind import model_kind, ModelKind
from .form import Form
from .networks import load_classifier, load_like
from .serac_options import SERACOptions
from .store import EditStore
from .texts import Texts
from .tokens import encode, window

@dataclass(frozen=True)
class Route:
    """Where the rows of a batch go."""

    score: Float[Tensor, " rows"]
    """Probability that a row is in the scope of the edit it is nearest to."""
    edit: Int[Tensor, " rows"]
    """That edit's place in the memory."""
    inside: Bool[Tensor, " rows"]


class SERAC(Editable):
    """The model answers what is in no edit's scope, bit by bit as before; the counterfactual model answers the rest.

    The edits so far are in `memory`; networks are shared by all copies.
    """

    name, title, published = "serac", "SERAC", "rep"
    recipe = "serac"
    trainer = "editors.memory.supervision:SupervisedTrainer"
    ended = True
    encoder_option = "cls_name"
    agreed = ("pairs",)
    options_class = SERACOptions
    geometric = True

    def __init__(self, model: nn.Module, options: SERACOptions | Mapping[str, Any] | None, tok: Any, classifier: nn.Module,
                 classifier_tok: Any, counterfactual: nn.Module | None):
        """tok: of the model and the counterfactual model. counterfactual: None with `freeze_cntr` only."""
        self.model, self.inner, self.options = model, (), self.options_class.of(options)
        self.kind, self.tok, self.overrides = model_kind(model), tok, {}
        if (counterfactual is None) != self.options.freeze_cntr:
            raise UserError("SERAC needs a counterfactual model, or freeze_cntr" if counterfactual is None else
                            "freeze_cntr: the model itself answers, so there is no counterfactual model")
        if counterfactual is not None and model_kind(counterfactual) is not self.kind:
            raise UserError(f"the counterfactual model is a {model_kind(counterfactual).value} model, the edited one a "
                            f"{self.kind.value} model; both must be of one kind")
        self.form = Form(self.kind)
        self.scope = self.options.scope_classifier(classifier, classifier_tok, self.form)
        self.net = nn.Module()
        self.net.classifier = classifier
        if counterfactual is not None:
            self.net.replacement = counterfactual
        if not self.options.cross_attend:
            self.net.register_buffer("scale", torch.tensor(1.0))
        self.net.to(next(model.parameters()).device)
        self._freeze()
        self.memory = EditStore(labelled=self.kind is not ModelKind.CLASSIFIER)
        self.placed: list[int] = []
        """Places in the memory of the edits written last."""

    @classmethod
    def build(cls, model: nn.Module, inner_params: Sequence[str], options: SERACOptions | Mapping[str, Any] | None, tok: Any,
              small_name: str | None = None, **loading) -> SERAC:
        """With networks from the hub or folders. small_name: where the counterfactual model starts; None: as a copy of the
        model. inner_params play no part. Raises UserError for what can't be loaded."""
        options = cls.options_class.of(options)
        counterfactual = None
        if not options.freeze_cntr:
            counterfactual = copy.deepcopy(model) if small_name is None else load_like(model, small_name, **loading)
            counterfactual.requires_grad_(True)
        return cls(model, options, tok, *load_classifier(options, **loading), counterfactual)

    def _freeze(self) -> None:
        if self.options.checkpoint_grad:
            self.net.classifier.activation_checkpointing_enable({"use_reentrant": False})
        if self.options.freeze is None:
            return
        classifier = self.net.classifier
        blocks = next((m for m in classifier.modules() if isinstance(m, nn.ModuleList)), None)
        if blocks is None or self.options.freeze > len(blocks):
            raise UserError(f"freeze: the classifier has only {0 if blocks is None else len(blocks)} blocks")
        classifier.requires_grad_(False)
        heads = [getattr(classifier, name) for name in ("classifier", "pre_classifier") if hasattr(classifier, name)]
        for module in [*list(blocks)[len(blocks) - self.options.freeze:], *heads]:
            module.requires_grad_(True)

    # Editing

    def edit(self, batch: Batch, condition: Batch | None = None, detach_history: bool = False) -> tuple[Self, dict[str, Any]]:
        inputs, labels = (batch.inputs, batch.labels) if isinstance(batch, Texts) else self._decoded(batch)
        return self.remember(list(zip(inputs, labels))), {}

    def remember(self, edits: Sequence[tuple[str, str]]) -> Self:
        """A copy with these (input, label) in its memory, too. A fact checker's edits are statements: their labels go."""
        edited = copy.copy(self)
        edited.memory = self.memory.copy()
        ids = [edited.memory.add(input, label if edited.memory.labelled else "") for input, label in edits]
        places = {entry.id: place for place, entry in enumerate(edited.memory)}
        edited.placed = [places[id] for id in ids]
        return edited

    def new_weights(self, batch: Batch, condition: Batch | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def _decoded(self, batch: Batch) -> tuple[list[str], list[str]]:
        """(queries, labels) of a batch whose texts are not at hand."""
        inputs = [self._text(row[:start][mask[:start].bool()]) for row, mask, start in self._prompts(batch)]
        if self.kind is ModelKind.CLASSIFIER:
            return inputs, [""] * len(inputs)
        return inputs, [self._text(row[row != IGNORED]) for row in batch["labels"]]

    def _prompts(self, batch: Batch) -> list[tuple[Tensor, Tensor, int]]:
        """(ids, mask, where the scored part begins) of each row; a decoder's label is a part of its input."""
        ends = [batch["input_ids"].shape[1]] * len(batch["input_ids"])
        if self.kind is ModelKind.DECODER:
            ends = [first_scored(labels) for labels in batch["labels"]]
        return list(zip(batch["input_ids"], batch["attention_mask"], ends))

    def _text(self, ids: Tensor) -> str:
        return self.tok.decode(ids, skip_special_tokens=True)

    def queries(self, batch: Batch) -> list[str]:
        """The texts that decide where the rows go: the inputs, of a decoder's what stands before the label."""
        return batch.inputs if isinstance(batch, Texts) else self._decoded(batch)[0]

    # Answering

    def __call__(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            base = wide(forward(self.model, {}, batch))
        if not len(self.memory):
            return base
        queries = self.queries(batch)
        if self.options.soft_weighting or not self.options.supervised:
            return self._mixture(base, batch, queries)
        route = self.route(queries)
        rows = route.inside.nonzero()[:, 0]
        if not len(rows):
            return base
        part = {name: tensor[rows] for name, tensor in batch.items()}
        with self._grad():
            logits = self.counterfactual(part, [queries[i] for i in rows.tolist()], route.edit[rows].tolist())
        return base.index_copy(0, rows, logits)

    def route(self, queries: Sequence[str]) -> Route:
        """One pass of the encoder over the queries. Raises UserError for an empty memory."""
        if not len(self.memory):
            raise UserError("the memory is empty: there is no edit that a query could fall under")
        log_p, edit = self.scope.best(queries, self.memory)
        score = log_p.exp()
        return Route(score, edit, score > self.options.threshold)

    def log_similarities(self, queries: Sequence[str]) -> Float[Tensor, "queries edits"]:
        """log p of each query under each edit of the memory."""
        return self.scope.log_similarities(queries, list(self.memory))

    def _mixture(self, base: Tensor, batch: Batch, queries: Sequence[str]) -> Tensor:
        """(1 - s) p_base + s p_counterfactual, as logits: the log-probability, or of one binary logit log p - log(1 - p)."""
        with self._grad():
            values, edits = self.log_similarities(queries).max(1)
            s = values.exp().view(-1, *[1] * (base.dim() - 1))
            logits = self.counterfactual(batch, queries, edits.tolist())
            if base.shape[-1] == 1:
                mixed = (1 - s) * base.sigmoid() + s * logits.sigmoid()
                return mixed.logit(eps=torch.finfo(mixed.dtype).eps)
            mixed = (1 - s) * base.softmax(-1) + s * logits.softmax(-1)
            return (mixed + torch.finfo(torch.float32).eps).log()

    def counterfactual(self, batch: Batch, queries: Sequence[str], places: Sequence[int]) -> Tensor:
        """Logits of the counterfactual model, which reads for each row the edit at its place in the memory, and the query."""
        model = self.model if self.options.freeze_cntr else self.net.replacement
        entries = list(self.memory)
        prefixes = [self.form.prefix(entries[place]) for place in places]
        longest = window(model, self.tok)
        if self.kind is ModelKind.DECODER:
            targets = self._targets(batch)
            rows = encode(self.tok, queries, longest - max(map(len, targets)), prefixes)
            return self._decoder_logits(model, rows, targets, batch)
        rows = encode(self.tok, queries, longest, prefixes)
        inputs = pad_batch(rows, pad_id(self.tok), batch["input_ids"].device)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self.kind.is_seq2seq:
            # The target as the counterfactual model's own kind reads it, whatever the edited model was given (see Collator).
            decoder_inputs = ("decoder_input_ids", "decoder_attention_mask") if self.kind is ModelKind.BART else ()
            inputs |= {name: batch[name] for name in ("labels", *decoder_inputs) if name in batch}
        return wide(forward(model, {}, inputs))

    def _targets(self, batch: Batch) -> list[list[int]]:
        """What stands behind the prompts of a decoder's batch."""
        return [row[end:][mask[end:].bool()].tolist() for row, mask, end in self._prompts(batch)]

    def _decoder_logits(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch: Batch
    ) -> Tensor:
        """The target behind a longer prompt; its logits stand where they would behind the batch's own."""
        ends = [end for *_, end in self._prompts(batch)]
        longer = pad_batch([[*p, *t] for p, t in zip(prompts, targets)], pad_id(self.tok), batch["input_ids"].device)
        logits = wide(forward(model, {}, {name: longer[name] for name in ("input_ids", "attention_mask")}))
        moved = logits.new_zeros((*batch["input_ids"].shape, logits.shape[-1]))
        for i, (prompt, target, end) in enumerate(zip(prompts, targets, ends)):
            n = min(end, len(prompt))
            moved[i, end - n:end + len(target)] = logits[i, len(prompt) - n:len(prompt) + len(target)]
        return moved

    def _grad(self):
        return torch.set_grad_enabled(self.net.training and torch.is_grad_enabled())

    # As an Editable

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the networks. The model itself is not trained, and stays as it is."""
        if mode or self.net.training:
            self.scope.changed()
        self.net.train(mode)
        return self

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self.scope.changed()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps. Tensors that share their storage (a decoder's embedding and head) are written once each."""
        return {name: tensor.clone() for name, tensor in super().state().items()}
