"""Second moments of keys over a corpus: one pass collects several layers; kept in memory and on disk, resumable.

A key is the input of a block's down-projection at one token; the moment is C = (1/N) sum k k^T over N tokens, uncentred: the C
of ROME (Meng et al. 2022) and the C_0 of MEMIT (Meng et al. 2023), without its weight. Counting is the published code's: the
start of each text, up to the model's longest context or `batch_tokens`; special tokens that the tokenizer adds count, padding
does not.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common.errors import UserError
from common.tensor_files import DamagedFile
from . import moment_store, ranks
from .budget import allowance, statistics_tokens
from .corpus import Corpus, document_order, find_corpus
from .decoder import Decoder
from .files import check_writable
from .fingerprint import model_fingerprint, tokenizer_fingerprint
from .kept import kept
from .key_sums import KeySums, PackedTexts, add_batch, batches
from .moment import Moment, spectrum

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
SNAPSHOT_SECONDS = 60.0
"""Time between snapshots, at least."""
SNAPSHOT_SHARE = 0.05
"""Largest part of the time that writing them may take."""
SEGMENT = 8
"""Batches that are summed by themselves, by one process, before they enter the total: so the order of additions, and with it
every bit, is the same for any number of processes."""
UNLIMITED_CONTEXT = 2048
"""Tokens read of a text when the model names no longest context (ALiBi)."""

FIRST_ASKED = "weights when statistics were first asked for"

log = logging.getLogger(__name__)

def keys_for(multiplier: float, d_in: int) -> int:
    """FastMEMIT's number of keys, ceil(m * d_in)."""
    return math.ceil(Fraction(str(multiplier)) * d_in)  # 1.1 * 6400 is 7040, but not in floats


@dataclass(frozen=True)
class MomentSpec:
    """Which keys are counted, and how. Raises UserError for numbers that are none."""

    dataset: str
    """Corpus, see corpus.py."""
    n_samples: int | str
    """Texts of it, or "all"."""
    dtype: str = "float32"
    """Keys are rounded to it and added in it (float16: added in float32, because its sums overflow)."""
    batch_tokens: int | None = None
    """The published option: at most so many tokens of a text are read. It changes the result."""
    max_keys: int | None = None
    """Stop at exactly so many tokens, cutting the last text; None: all tokens of the texts."""

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"precision {self.dtype!r} of statistics is not known: give {', '.join(DTYPES)}")
        if self.n_samples is None:
            raise UserError('n_samples is missing: give a number of texts, or "all"')
        counts = {} if self.n_samples == "all" else {"n_samples": self.n_samples}
        _check_counts(batch_tokens=self.batch_tokens, max_keys=self.max_keys, **counts)


def collect(
    decoder: Decoder, layers: Sequence[int], spec: MomentSpec, stats_dir: str | os.PathLike | None = None,
    pack_tokens: int | None = None, resume: bool = True, progress: bool = True, force: bool = False,
) -> dict[int, Moment]:
    """{layer: Moment}: from this process's cache, else from files, else by one pass over the corpus for all that are left.

    They belong to the model as it was when statistics were first asked for: after an edit the same call returns the same
    moments, and a layer that would have to be collected then is an error, never a silent pass over the edited model.

    stats_dir: where files are kept, in `<model>/<corpus>_stats/`; default `stats_folder()`.
    pack_tokens: padded tokens of one forward pass, default chosen from the memory. It changes rounding only.
    resume: go on from the snapshot of a killed collection, if there is one; the result has the same bits as without the kill.
    force: collect again, on the model as it is now, whatever is there.
    Files that are damaged are collected anew. Raises UserError for statistics of another model, layer or corpus, and what
    corpus.py names.
    """
    _check_counts(pack_tokens=pack_tokens)
    model, corpus = decoder.model, find_corpus(spec.dataset)
    if force:
        kept(model, FIRST_ASKED).clear()
    identity_of = identities(decoder, layers, spec, corpus)
    folder = folder_of(model, corpus, stats_dir)
    moments = kept(model, "moments")
    keys = {layer: json.dumps([str(folder), identity]) for layer, identity in identity_of.items()}
    missing, looked_up = {}, False
    for layer, identity in identity_of.items():
        if force or keys[layer] not in moments:
            looked_up = True
            moment = None if force else ranks.from_first(lambda: _from_disk(folder, identity, decoder.weight(layer).d_in))
            if moment is None:
                missing[layer] = identity
            else:
                moments[keys[layer]] = moment
    if missing:
        if model_fingerprint(model) != _fingerprint(model):
            raise UserError(
                f"layers {list(missing)} have no statistics yet, and the model was changed after its first statistics: ask for "
                "all layers before editing, revert the edit, or force a collection on the model as it is"
            )
        collected = _collect_missing(decoder, corpus, folder, missing, resume, progress, pack_tokens)
        moments.update((keys[layer], moment) for layer, moment in collected.items())
    if looked_up:
        ranks.from_first(lambda: moment_store.sweep_snapshots(folder))
    return {layer: moments[keys[layer]] for layer in identity_of}


def collect_now(decoder: Decoder, layers: Sequence[int], spec: MomentSpec, progress: bool = True) -> dict[int, Moment]:
    """{layer: Moment} of the model as it is now, edited or not, by a pass over the corpus; kept nowhere."""
    corpus, weights = find_corpus(spec.dataset), model_fingerprint(decoder.model)
    as_first_asked = identities(decoder, layers, spec, corpus)
    identity_of = {layer: {**identity, "weights": weights} for layer, identity in as_first_asked.items()}
    return _collect_missing(decoder, corpus, None, identity_of, False, progress, None)


def pin(model: nn.Module) -> None:
    """Let statistics that are asked for from now on belong to the model as it is now, or as it was when they first were."""
    _fingerprint(model)


def stats_folder() -> Path:
    """Where statistics are kept: KE_STATS_DIR, else `stats` in KE_DATA_DIR, else in ~/.cache/knowledge-editing."""
    data = os.environ.get("KE_DATA_DIR") or Path.home() / ".cache" / "knowledge-editing"
    return Path(os.environ.get("KE_STATS_DIR") or Path(data) / "stats")


def folder_of(model: nn.Module, corpus: Corpus, stats_dir: str | os.PathLike | None = None) -> Path:
    """`<stats_dir>/<model>/<corpus>_stats`, where the published programs too keep a model's statistics over a corpus."""
    name = getattr(model.config, "_name_or_path", "") or f"{type(model).__name__}-{_fingerprint(model)[:8]}"
    return Path(stats_dir or stats_folder()).resolve() / name.replace("/", "_").replace("\\", "_") / f"{corpus.slug}_stats"


def identities(
    decoder: Decoder, layers: Sequence[int], spec: MomentSpec, corpus: Corpus
) -> dict[int, dict[str, Any]]:
    """{layer: what its statistics are collected from}; moment_store names files by it. corpus: the spec's."""
    model = decoder.model
    longest = decoder.positions or UNLIMITED_CONTEXT
    common = {
        "format": moment_store.FORMAT,
        "model": getattr(model.config, "_name_or_path", ""),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "weights": _fingerprint(model),
        "tokenizer": tokenizer_fingerprint(decoder.tok),
        "corpus": corpus.identity,
        "corpus_name": corpus.name,
        "n_samples": spec.n_samples,
        "max_keys": spec.max_keys,
        "max_length": min(longest, spec.batch_tokens or longest),
        "cropped": spec.batch_tokens is not None and spec.batch_tokens < longest,
        "dtype": spec.dtype,
    }
    return {layer: {**common, "layer": layer, "module": decoder.sites.name("down_proj", layer)} for layer in layers}


def _fingerprint(model: nn.Module) -> str:
    """Of the weights as they were when statistics were first asked for: all statistics belong to that state."""
    weights = kept(model, FIRST_ASKED)
    if "fingerprint" not in weights:
        weights["fingerprint"] = model_fingerprint(model)
    return weights["fingerprint"]


def _from_disk(folder: Path, identity: Mapping[str, Any], d_in: int) -> Moment | None:
    path = moment_store.file_of(folder, identity)
    if path.exists():
        try:
            return moment_store.load(path, identity, d_in)
        except DamagedFile as error:
            warnings.warn(f"{error}; it is collected anew", stacklevel=2)
            return None
    if identity["max_keys"] is None:
        for published in moment_store.published_files(folder, identity):
            if published.exists():
                return moment_store.load_published(published, identity, d_in)
    return None


def _collect_missing(
    decoder: Decoder, corpus: Corpus, folder: Path | None, missing: Mapping[int, Mapping[str, Any]], resume: bool,
    progress: bool, pack_tokens: int | None,
) -> dict[int, Moment]:
    """Collect the layers of `missing` (layer -> identity asked for) in as few passes as the memory allows, and save them.

    folder: None saves nothing.
    """
    if folder:
        ranks.from_first(lambda: check_writable(folder, "statistics"))
    try:
        texts = corpus.texts()
    except UserError as error:
        if folder is None:
            raise
        path = moment_store.file_of(folder, next(iter(missing.values())))
        raise UserError(f"{error}; or put statistics that were collected elsewhere at {path}") from error
    collected = {}
    for layers in _passes(decoder, sorted(missing), next(iter(missing.values()))["dtype"]):
        run = _Pass(decoder, texts, folder, {layer: missing[layer] for layer in layers}, pack_tokens)
        if resume:
            run.restore()
        started = time.monotonic()
        run.run(progress)
        provenance = {
            "count": run.state["count"], "texts": run.state["texts"], "seconds": round(time.monotonic() - started, 3),
            "torch": torch.__version__,
        }

        def finished(layer: int) -> Moment:
            tensors = run.sums.pop(layer).tensors()
            identity = {**missing[layer], **provenance}
            path = moment_store.file_of(folder or Path(), identity)
            moment = moment_store.from_sums(**tensors, identity=identity, where=path, d_in=decoder.weight(layer).d_in)
            if identity["max_keys"] is not None:  # few keys: say what they span
                identity |= spectrum(moment.matrix)
                log.info("block %d: second moment of %d keys from %d documents in %.1f s, rank %d of %d, condition %.3g",
                         layer, *(identity[field] for field in ("count", "texts", "seconds", "rank")), moment.d_in,
                         identity["condition"])
            if folder:
                moment_store.save(path, tensors, identity)
            return moment

        for layer in layers:
            collected[layer] = ranks.from_first(lambda layer=layer: finished(layer))
        if run.snapshot:
            run.snapshot.unlink(missing_ok=True)
    return collected


class _Pass:
    """One pass over the corpus for some layers: their sums, and the state from which a killed pass goes on."""

    def __init__(
        self, decoder: Decoder, texts: Sequence[str], folder: Path | None, identities: Mapping[int, Mapping[str, Any]],
        pack_tokens: int | None,
    ):
        self.decoder, self.texts = decoder, texts
        self.identities = list(identities.values())
        self.identity = self.identities[0]
        weights = {layer: decoder.weight(layer) for layer in identities}
        self.widths = {layer: weight.d_in for layer, weight in weights.items()}
        dtype = DTYPES[self.identity["dtype"]]
        # The sums, which the first process alone has; and those of the segment at hand.
        self.sums, self.part = (
            {layer: KeySums(weight.d_in, dtype, weight.parameter.device) for layer, weight in weights.items()} for _ in range(2)
        )
        digest = hashlib.sha256(json.dumps(self.identities).encode()).hexdigest()[:16]
        self.snapshot = folder and folder / f"unfinished-{digest}.safetensors"
        if pack_tokens is None:
            widest = max(weight.d_in for weight in weights.values())
            pack_tokens = statistics_tokens(decoder, widest, self.identity["max_length"])
        # Where the next batch stands; and the packing, which a continued pass keeps, so that its sums round alike.
        self.state = {"window": 0, "index": 0, "tokens_before": 0, "count": 0, "texts": 0, "pack_tokens": pack_tokens}

    def restore(self) -> None:
        """Continue from the snapshot, if there is one."""
        sums = {}
        if ranks.from_first(self.snapshot.exists) if self.snapshot else False:
            try:
                sums, self.state = moment_store.load_snapshot(self.snapshot, self.widths)
            except DamagedFile as error:
                warnings.warn(str(error), stacklevel=2)
        for layer, tensors in sums.items():
            self.sums[layer].restore(tensors)

    def run(self, progress: bool) -> None:
        """Add all batches that are left. Raises UserError when the corpus holds no tokens or the memory does not suffice."""
        state, max_keys = self.state, self.identity["max_keys"]
        order = document_order(len(self.texts), self.identity["n_samples"])
        stream = batches(
            self.decoder.tok, self.texts, order, self.identity["max_length"], state["pack_tokens"], max_keys,
            state["window"], state["tokens_before"],
        )
        next_batch = (state["window"], state["index"])
        bar = tqdm(total=None if max_keys else len(order), initial=state["texts"], unit="text",
                   desc=f"second moments, layers {','.join(map(str, self.sums))}", disable=None if progress else True)
        start, count_before, due = time.monotonic(), state["count"], time.monotonic() + SNAPSHOT_SECONDS
        batches_left = itertools.dropwhile(lambda batch: (batch.window, batch.index) < next_batch, stream)
        with bar:
            while segments := list(itertools.islice(_segments(batches_left), ranks.world_size())):
                for batch in segments[ranks.rank()] if ranks.rank() < len(segments) else ():
                    self._add(batch.rows)
                for layer, total in self.sums.items():
                    total.add_in_order(self.part[layer])
                batches_done = [batch for segment in segments for batch in segment]
                last = batches_done[-1]
                state.update(window=last.window, index=last.index + 1, tokens_before=last.tokens_before)
                state["count"] += sum(len(row) for batch in batches_done for row in batch.rows)
                texts_done = sum(len(batch.rows) for batch in batches_done)
                state["texts"] += texts_done
                bar.update(texts_done)
                rate = (state["count"] - count_before) / (time.monotonic() - start)
                bar.set_postfix_str(f"{state['count']} tokens, {rate:.0f}/s", refresh=False)
                if self.snapshot and ranks.rank() == 0 and time.monotonic() >= due:
                    due = self._save_snapshot()
            if not max_keys:
                bar.update(len(order) - bar.n)  # texts without tokens are in no batch
        if not state["count"]:
            raise UserError(f"corpus {self.identity['corpus_name']}: its texts hold no tokens")
        if max_keys and state["count"] < max_keys:
            warnings.warn(f"the texts have {state['count']} tokens, fewer than the {max_keys} keys asked for: all are used",
                          stacklevel=2)

    def _add(self, rows: Sequence[Sequence[int]]) -> None:
        try:
            add_batch(self.decoder, self.part, rows)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory in a pass over {len(rows)} texts of up to {len(rows[0])} tokens: set pack_tokens (now "
                f"{self.state['pack_tokens']}) lower, or batch_tokens, to read less of each text"
            ) from error

    def _save_snapshot(self) -> float:
        """Returns when the next one is due."""
        start = time.monotonic()
        sums = {layer: total.tensors() for layer, total in self.sums.items()}
        moment_store.save_snapshot(self.snapshot, sums, self.state, self.identities)
        end = time.monotonic()
        return end + max(SNAPSHOT_SECONDS, (end - start) / SNAPSHOT_SHARE)


def _segments(stream: Iterator[PackedTexts]) -> Iterator[list[PackedTexts]]:
    return iter(lambda: list(itertools.islice(stream, SEGMENT)), [])


def _passes(decoder: Decoder, layers: Sequence[int], dtype: str) -> list[Sequence[int]]:
    """`layers` (ascending) in groups whose sums, twice, fit into the memory's part for them; usually all at once."""
    size = torch.promote_types(DTYPES[dtype], torch.float32).itemsize
    width = max(decoder.weight(layer).d_in for layer in layers)
    layers_a_pass = max(1, allowance(decoder.weight(layers[0]).parameter.device, "moments") // (width * width * size))
    return [layers[start : start + layers_a_pass] for start in range(0, len(layers), layers_a_pass)]


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"{name} is {value!r}: give a whole number from 1")
