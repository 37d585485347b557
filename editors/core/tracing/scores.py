"""Scores of all cells of a prompt: tokens x layers, for hidden states and for windows of MLPs and attentions."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from common.errors import UserError
from editors.core.budget import TRACE_TOKENS, TRACE_TOKENS_CPU, allowance, consecutive
from editors.core.decoder import Decoder

from editors.core.tracing.noise import Noise
from editors.core.tracing.passes import Cell, Passes, Site
from editors.core.tracing.prompts import TracePrompt

KINDS: Mapping[str, Site] = {"state": "block", "mlp": "mlp_out", "attn": "attn_out"}
"""{kind: whose outputs it restores}."""
SEVERED: Mapping[str, Site] = {"no_mlp": "mlp_out", "no_attn": "attn_out"}
"""{kind: whose outputs stay corrupted}: hidden states at the subject's last token, restored without what the MLPs, or the
attentions, of later blocks would make of them there."""
PUBLISHED_WINDOW = 10
MAX_PROMPTS = 64
"""Prompts whose runs are kept together, at most."""


@dataclass(frozen=True)
class Traced:
    """The trace of a prompt: the model's answer, and its probability in the clean, the corrupted and the restored runs."""

    prompt: TracePrompt
    answer: int
    """The token that it says next, and whose probability all scores are."""
    high: float
    """The answer's probability in the clean run."""
    low: float
    """The same in the corrupted run, in the mean over the samples."""
    scores: Mapping[str, Float[np.ndarray, "tokens layers"]]
    """By kind: the same in the corrupted run with the cell restored. Empty where the model does not know the fact."""

    @property
    def correct(self) -> bool:
        """Whether the answer begins the known attribute."""
        return self.answer == self.prompt.expected


def default_window(layers: int) -> int:
    """Blocks in a window: the published 10 on models of their depth, a quarter of the blocks on shallower ones."""
    return PUBLISHED_WINDOW if layers >= 24 else max(1, layers // 4)


def window(layer: int, size: int, layers: int) -> tuple[int, int]:
    """(first block, block behind the last) of the window around ``layer``."""
    return max(0, layer - size // 2), min(layers, layer + math.ceil(size / 2))


def trace(
    decoder: Decoder, prompts: Sequence[TracePrompt], noise: Noise, replace_embedding: bool = False,
    kinds: Sequence[str] = tuple(KINDS), size: int | None = None, known_only: bool = True, subject_last: bool = False,
) -> list[Traced]:
    """Traces of the prompts, which are few enough to keep the runs of (see :func:`blocks`). The model is left as it was.

    replace_embedding: noise replaces the embeddings instead of being added, in all corrupted runs. size: blocks in a window.
    known_only: prompts that the model answers otherwise than by the fact's attribute are not traced. subject_last: only the
    subject's last token is; the scores of all others are NaN. Raises UserError if a probability is not finite.
    """
    with decoder.evaluating(), torch.no_grad():
        passes = Passes(decoder, prompts, noise, replace_embedding)
        traces = [Traced(prompt, int(passes.answers[i]), float(passes.high[i]), float(passes.low[i]), {})
                  for i, prompt in enumerate(prompts)]
        chosen = [i for i, traced in enumerate(traces) if traced.correct or not known_only]
        scores = _scores(passes, chosen, kinds, size or default_window(decoder.sites.layers), subject_last)
    return [replace(traced, scores=scores.get(i, {})) for i, traced in enumerate(traces)]


def blocks(prompts: Sequence[TracePrompt], decoder: Decoder, samples: int) -> Iterator[list[TracePrompt]]:
    """Consecutive prompts whose runs fit into the memory: some 6 numbers a block, token and channel."""
    bytes_a_token = 6 * decoder.sites.layers * decoder.sites.d_model * decoder.model.dtype.itemsize

    def needed_bytes(block: list[TracePrompt]) -> int:
        return len(block) * (samples + 1) * max(len(prompt.ids) for prompt in block) * bytes_a_token

    return consecutive(prompts, needed_bytes, allowance(decoder.device, "trace"), MAX_PROMPTS)


def _scores(
    passes: Passes, chosen: Sequence[int], kinds: Sequence[str], size: int, subject_last: bool
) -> dict[int, dict[str, Float[np.ndarray, "tokens layers"]]]:
    """{number of a chosen prompt: {kind: scores}}."""
    layers = passes.decoder.sites.layers
    scores: dict[int, dict[str, np.ndarray]] = {}
    cells: dict[Cell, list[tuple[str, int]]] = {}  # where the score of each cell goes: (kind, layer)
    for i in chosen:
        prompt, low, high = passes.prompts[i], float(passes.low[i]), float(passes.high[i])
        last, scores[i] = len(prompt.ids) - 1, {}
        for kind in kinds:
            single = subject_last or kind in SEVERED
            tokens = [prompt.end - 1] if single else range(prompt.start, len(prompt.ids))
            # Tokens before the subject are as in the clean run, and behind the last block nothing is but what it puts out.
            table = scores[i][kind] = np.full((len(prompt.ids), layers), math.nan if single else low)
            of_state = KINDS.get(kind, "block") == "block"
            for token in tokens:
                for layer in range(layers):
                    if of_state and layer == layers - 1:
                        table[token, layer] = high if token == last else low
                        continue
                    first, end = (layer, layer + 1) if of_state else window(layer, size, layers)
                    cell = Cell(i, token, KINDS.get(kind, "block"), first, end, SEVERED.get(kind))
                    cells.setdefault(cell, []).append((kind, layer))
    for batch in _batches(passes, list(cells)):
        probabilities = passes.score(batch)
        if not torch.isfinite(probabilities).all():
            raise UserError("the model's probabilities are not finite under noise: load it in a wider dtype, or use "
                            "weaker noise")
        for cell, score in zip(batch, probabilities.tolist()):
            for kind, layer in cells[cell]:  # windows that the ends cut to the same blocks are one
                scores[cell.prompt][kind][cell.token, layer] = score
    return scores


def _batches(passes: Passes, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """The cells in batches: those that start at the same block with as many tokens left, together."""
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.start, len(passes.prompts[cell.prompt].ids) - cell.token].append(cell)
    decoder = passes.decoder
    tokens = TRACE_TOKENS_CPU if decoder.device.type == "cpu" else TRACE_TOKENS
    vocabulary = decoder.model.config.get_text_config().vocab_size
    memory = allowance(decoder.device, "restored")
    for (start, columns), group in groups.items():
        group.sort(key=lambda cell: cell.token)  # prefixes of like length
        blocks_run = decoder.sites.layers - start
        floats_a_row = decoder.sites.d_model * (4 * group[-1].token * blocks_run + 40 * columns) + 4 * vocabulary
        rows = max(1, int(min(tokens / columns, memory / (4 * floats_a_row))))
        count = max(1, rows // (passes.rows - 1))
        yield from (group[i:i + count] for i in range(0, len(group), count))
