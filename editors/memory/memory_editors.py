"""SERAC and the lookup cache on decoders: requests become a memory, and prompts in their scope are answered by it."""

import copy
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from editors.base import Editor, Task
from editors.core.fingerprint import model_fingerprint, tokenizer_fingerprint
from editors.core.modules import input_device, text_config
from editors.core.pretrained import read_tokenizer
from editors.learned.model_kind import ModelKind
from editors.learned.options import Options
from .answerers import LookupAnswerer, SeracAnswerer
from .form import Form
from .lookup import Lookup, LookupOptions
from .networks import load_classifier, load_decoder
from .parts import check_pair, COUNTERFACTUAL, KERNEL, SCOPE
from .routed import RoutedEdit
from .routing import Answerer
from .serac import SERAC
from .serac_options import SERACOptions
from .store import EditStore

AnswererOf = Callable[[nn.Module, EditStore], Answerer]


class MemoryEditor(Editor):
    """An editor whose edits are texts. A subclass says who answers."""

    def _edit(self, task: Task) -> RoutedEdit:
        """The edit that answers prompts in the requests' scope with their targets. Of two requests with the same prompt the
        later one holds; contexts, caches and memories of keys mean nothing here."""
        edits = EditStore()
        for request in task.requests:
            edits.add(request.text, request.target_new.strip(), request.joined)
        return self.of_memory(task.model, task.tok, edits, {"requests": len(task.requests)}, task.started)

    def of_memory(self, model: nn.Module, tok, edits: EditStore, about: Mapping[str, Any] | None = None,
                  started: float | None = None) -> RoutedEdit:
        """The edit that answers by a memory, which may be empty as yet. about: more for its info; started: when the work began.

        Raises UserError for networks that are not there.
        """
        started = time.perf_counter() if started is None else started
        info = {"editor": self.name, "hparams": asdict(self.hparams), **(about or {}), "networks": dict(self.networks()),
                "model": model_fingerprint(model), "vocabulary": text_config(model).vocab_size,
                "tokenizer": {"name": tok.name_or_path, "fingerprint": tokenizer_fingerprint(tok)}}
        answerer = self.answerer(tok)
        return RoutedEdit(edits, info | {"seconds": {"total": time.perf_counter() - started}}, answerer)

    def networks(self) -> Mapping[str, Any]:
        """What tells the editor's networks from others that may come to stand in their place."""
        return {}

    @abstractmethod
    def answerer(self, tok: Any) -> AnswererOf:
        """Makes who answers for a model with this tokenizer. Raises UserError for networks that are not there."""

    def answerer_of(self, info: Mapping[str, Any]) -> AnswererOf:
        """The same for a saved edit, whose tokenizer is loaded from where it came."""
        def make(model: nn.Module, memory: EditStore) -> Answerer:
            if info.get("model") not in (None, model_fingerprint(model)):
                warnings.warn("the edit was made on another model, or on other weights of it (their fingerprints differ)",
                              stacklevel=4)
            networks = self.networks()
            if info.get("networks", networks) != networks:
                raise UserError(f"the edit's networks are gone: they were of run {info['networks'].get('run')}, those there "
                                f"now are of run {networks.get('run')}; put the old ones back, or make the edit again")
            tokenizer = info["tokenizer"]
            tok = read_tokenizer(tokenizer["name"], lambda *_: f"the edit's tokenizer {tokenizer['name']!r} does not load")
            if tokenizer_fingerprint(tok) != tokenizer["fingerprint"]:
                raise UserError(f"the tokenizer {tokenizer['name']!r} is not the one that the edit was made with")
            return self.answerer(tok)(model, memory)

        return make


@dataclass(frozen=True, kw_only=True)
class SERACHParams(Options):
    """SERAC's keys as an editor of requests: the trained networks, and options to read them with."""

    system: str | None = None
    """Folder of a trained SERAC, with `scope` and `counterfactual` in it."""
    scope: str | None = None
    """Scope classifier by itself: a sentence encoder of the hub or a folder."""
    counterfactual: str | None = None
    """Counterfactual decoder by itself; without `system` null means the edited model itself."""
    threshold: float | None = None
    """Probability from which on a prompt is in scope; null, as below: what the scope classifier was saved with, or the
    published value."""
    cos: bool | None = None
    square: bool | None = None
    bound_embeds: bool | None = None
    dist_heads: int | None = None
    pooling: str | None = None
    cross_attend: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.system is None) == (self.scope is None):
            raise UserError("give either system, the folder of a trained SERAC, or scope, a sentence encoder")
        if self.system is not None and self.counterfactual is not None:
            raise UserError("counterfactual: the system has one already")


class SERACEditor(MemoryEditor):
    """Mitchell et al. 2022b, on any decoder: a prompt that the scope classifier puts under an edit is answered by the
    counterfactual decoder, which reads the edit before the prompt."""

    name, algorithm = SERAC.title, SERAC
    hparams_class = SERACHParams

    def __init__(self, hparams: SERACHParams):
        super().__init__(hparams)
        self._placed: dict[tuple[torch.dtype, torch.device], tuple[nn.Module, nn.Module | None, Any]] = {}

    @cached_property
    def _parts(self) -> tuple[str, str | None, dict[str, Any]]:
        """(scope classifier, counterfactual decoder or None for the edited model itself, what the former tells)."""
        scope, decoder = self.hparams.scope, self.hparams.counterfactual
        if self.hparams.system is not None:
            folder = Path(self.hparams.system)
            if not (folder / SCOPE).is_dir():
                raise UserError(f"system: {folder} holds no trained SERAC (no folder {SCOPE}); train one, see "
                                "scripts/serac_world.sh")
            scope = str(folder / SCOPE)
            decoder = str(folder / COUNTERFACTUAL) if (folder / COUNTERFACTUAL).is_dir() else None
        header = dict(check_pair(scope, decoder))
        if self.hparams.system is not None and decoder is None and not header.get("freeze_cntr"):
            raise UserError(f"system: {self.hparams.system} has no folder {COUNTERFACTUAL}, with which it was trained: export "
                            "the run again")
        if header.get("model_kind", ModelKind.DECODER.value) != ModelKind.DECODER.value:
            raise UserError(f"{scope} was trained for a {header['model_kind']} model, not for a decoder")
        return scope, decoder, header

    def networks(self) -> Mapping[str, Any]:
        return {"run": self._parts[2].get("run")}

    @cached_property
    def _classifier(self) -> tuple[SERACOptions, nn.Module, Any]:
        """(its options, the encoder, the encoder's tokenizer), loaded once."""
        scope, _, header = self._parts
        given_values = {key: value for key, value in asdict(self.hparams).items() if value is not None}
        for key in KERNEL:
            if key != "threshold" and given_values.get(key, header.get(key)) != header.get(key, given_values.get(key)):
                raise UserError(f"{key}: {scope} was trained with {header[key]}, not with {given_values[key]}: leave it out")
        values = {key: value for key, value in (header | given_values).items() if key in SERACOptions.__dataclass_fields__}
        options = SERACOptions(cls_name=scope, **values)
        return options, *load_classifier(options, trained=True)

    def answerer(self, tok: Any) -> AnswererOf:
        (options, _, encoder_tok), form = self._classifier, Form(ModelKind.DECODER)

        def make(model: nn.Module, memory: EditStore) -> Answerer:
            encoder, decoder, decoder_tok = self._beside(model)
            classifier = options.scope_classifier(encoder, encoder_tok, form)
            if decoder is None:
                decoder, decoder_tok = model, tok
            return SeracAnswerer(memory.to(input_device(model)), classifier, options.threshold, decoder, tok, decoder_tok, form,
                                 text_config(model).vocab_size)

        return make

    def _beside(self, model: nn.Module) -> tuple[nn.Module, nn.Module | None, Any]:
        """(encoder, counterfactual decoder or None, its tokenizer) where the model is; the last are kept, for the next edit."""
        key = (next(model.parameters()).dtype, input_device(model))
        if key not in self._placed:
            source, encoder = self._parts[1], copy.deepcopy(self._classifier[1]).to(key[1]).eval()
            self._placed = {key: (encoder, *((None, None) if source is None else load_decoder(source, model)))}
        return self._placed[key]


class LookupEditor(MemoryEditor):
    """The lookup cache on a decoder: a prompt whose mean last hidden state is nearer to an edit's than the threshold gets its
    target, word for word."""

    name, algorithm = Lookup.title, Lookup
    hparams_class = LookupOptions

    def answerer(self, tok: Any) -> AnswererOf:
        if self.hparams.mean_over_padding:
            raise UserError("mean_over_padding: prompts are read without padding here")
        return lambda model, memory: LookupAnswerer(memory, self.hparams.threshold, self.hparams.onehot_logit, model, tok)
