"""The two runs of a prompt, and runs that go on from the second with something of the first put back.

Whatever stands before a restored state, in tokens or in blocks, is as in the corrupted run and is not computed again: the
tokens before it enter as that run's KV cache, and the blocks below it are left out.
"""

import copy
import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from editors.core.decoder import Decoder
from editors.core.modules import by_row, first, hooked
from editors.core.prompts import pad_batch
from editors.core.replay import Replay, only_at

from editors.core.tracing.noise import Noise
from editors.core.tracing.prompts import TracePrompt

Site = Literal["block", "mlp_out", "attn_out"]
"""The module whose output is restored: of MLP and attention the last linear map, before anything that the module adds; of a
mixture of experts the whole."""


@dataclass(frozen=True)
class Cell:
    """A restoration: of the outputs of ``site`` in the blocks ``low`` to ``high`` - 1 at one token of one prompt."""

    prompt: int
    token: int
    site: Site
    low: int
    high: int
    severed: Site | None = None
    """Of the blocks that run anew, the modules whose output at the token stays as in the corrupted run."""

    @property
    def start(self) -> int:
        """The first block that runs anew."""
        return self.low + 1 if self.site == "block" else self.low


class Passes:
    """Clean and corrupted runs of some prompts, in one batch; what later runs need of them is kept.

    Rows of a prompt: one clean, then one for each sample of the noise. replace: noise replaces the embeddings instead of
    being added.
    """

    def __init__(
        self, decoder: Decoder, prompts: Sequence[TracePrompt], noise: Noise, replace: bool
    ):
        self.decoder, self.prompts = decoder, list(prompts)
        self.rows = noise.samples + 1
        self.outputs: dict[Site, list[Float[Tensor, "rows tokens d_model"]]] = {"block": [], "mlp_out": [], "attn_out": []}
        self.companions: tuple | None = None
        self.cache = DynamicCache()  # all layers complete, whatever the model's window: prefixes are cut out of it
        batch = pad_batch([p.ids for p in prompts for _ in range(self.rows)], decoder.pad_id, decoder.device)
        positions = {"position_ids": batch["position_ids"]} if self.takes_positions else {}
        with hooked(self._hooks(noise, replace)):
            last = decoder.stack(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], past_key_values=self.cache,
                use_cache=True, **positions).last_hidden_state
        ends = torch.tensor([len(p.ids) - 1 for p in prompts], device=last.device).repeat_interleave(self.rows)
        p = self.probabilities(last[torch.arange(len(last), device=last.device), ends]).unflatten(0, (-1, self.rows))
        self.answers = p[:, 0].argmax(1)
        """The token that the clean run says next."""
        answer_p = p.gather(2, self.answers[:, None, None].expand(-1, self.rows, 1))[:, :, 0].cpu()
        self.high, self.low = answer_p[:, 0], answer_p[:, 1:].mean(1)
        """The answer's probability, in the clean run and in the mean over the corrupted ones."""

    @property
    def takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.decoder.stack.forward).parameters

    def probabilities(self, normed: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocabulary"]:
        """The next token's probabilities, in float32 at least, from the decoder's output."""
        logits = self.decoder.logits(normed)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)

    def score(self, cells: Sequence[Cell]) -> Float[Tensor, " cells"]:
        """The answer's probability with each cell restored, in the mean over the samples.

        The cells have one ``start``, and as many tokens from theirs to their prompt's end.
        """
        replay = Continuation(self, cells)
        p = self.probabilities(replay.last_column())
        answers = self.answers[[cell.prompt for cell in cells]].repeat_interleave(self.rows - 1).to(p.device)
        return p.gather(1, answers[:, None])[:, 0].unflatten(0, (-1, self.rows - 1)).mean(1).cpu()

    def _hooks(self, noise: Noise, replace: bool):
        def corrupt(module, args, output):
            self.embedded = output.clone()
            for i, prompt in enumerate(self.prompts):
                place = (slice(i * self.rows + 1, (i + 1) * self.rows), slice(prompt.start, prompt.end))
                drawn = noise.draw(prompt.end - prompt.start, output.shape[-1])
                changed = drawn if replace else output[place].cpu() + drawn  # in float64, which not every device has
                self.embedded[place] = changed.to(output.dtype).to(output.device)
            return self.embedded.clone()

        def keep(site):
            def hook(module, args, output):
                if isinstance(output, tuple) and site == "block":
                    self.companions = (None,) * (len(output) - 1)
                # Cloned, since some blocks add to their input, or to their MLP's output, in place.
                self.outputs[site].append(by_row(first(output), self.rows * len(self.prompts)).clone())
            return hook

        yield self.decoder.embedding.register_forward_hook(corrupt)
        for layer in range(self.decoder.sites.layers):
            for site in self.outputs:
                yield self.decoder.module(site, layer).register_forward_hook(keep(site))


class Continuation(Replay):
    """The corrupted run from a cell's token and block on, with the cell restored: a row for each cell and sample."""

    def __init__(self, passes: Passes, cells: Sequence[Cell]):
        decoder, samples = passes.decoder, passes.rows - 1
        self.passes, self.cells, self.samples = passes, cells, samples
        self.decoder, self.start = decoder, cells[0].start
        self.blocks = [decoder.block(layer) for layer in range(decoder.sites.layers)]
        self._takes_positions, self._companions = passes.takes_positions, passes.companions

        cell_of_row = [cell for cell in cells for _ in range(samples)]
        ids = [passes.prompts[cell.prompt].ids for cell in cell_of_row]
        batch = pad_batch(ids, decoder.pad_id, decoder.device, align=[cell.token for cell in cell_of_row])
        self.ids, self.mask, self.positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
        self.lookup = max(cell.token for cell in cells)
        self._rows = torch.tensor([cell.prompt * passes.rows + 1 + i % samples for i, cell in enumerate(cell_of_row)])
        tokens = torch.tensor([cell.token for cell in cell_of_row])[:, None]
        self._columns = tokens + torch.arange(self.columns)
        self.cache = self._prefixes(tokens) if self.lookup else None
        self.hidden = None
        if self.start:
            below = passes.outputs["block"][self.start - 1]
            self.hidden = self._corrupted(below)
            self._put(self.hidden, [i for i, cell in enumerate(cells) if cell.site == "block"], below, clean=True)

    def last_column(self) -> Float[Tensor, "rows d_model"]:
        """The decoder's output at the prompts' last token, from where the answer is read."""
        last = self.decoder.sites.layers - 1
        with ExitStack() as stack:
            stack.enter_context(hooked(self._hooks()))
            if self.columns > 1:  # then nothing else of the last block is read, nor is anything restored there
                last_columns = torch.arange(1, len(self._rows) + 1) * self.columns - 1
                for site in ("attn_out", "mlp"):
                    stack.enter_context(only_at(self.decoder.module(site, last), last_columns))
            return self()[:, -1]

    def _corrupted(self, x: Float[Tensor, "runs tokens d_model"]) -> Float[Tensor, "rows columns d_model"]:
        return x[self._rows[:, None].to(x.device), self._columns.to(x.device)]

    def _prefixes(self, tokens: Tensor) -> DynamicCache:
        """The corrupted run's keys and values before each row's token, padded on the left."""
        cache = copy.copy(self.passes.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        source = (torch.arange(self.lookup) - (self.lookup - tokens)).clamp_min(0)
        for number, layer in enumerate(cache.layers):
            if number < self.start:  # never read, but its shape tells masks how long the prefix is
                shape = (len(self._rows), layer.keys.shape[1], self.lookup)
                layer.keys, layer.values = (x.new_zeros(()).expand(*shape, x.shape[-1]) for x in (layer.keys, layer.values))
            else:
                layer.keys, layer.values = (
                    x[self._rows[:, None].to(x.device), :, source.to(x.device)].transpose(1, 2)
                    for x in (layer.keys, layer.values))
        return cache

    def _put(
        self, x: Float[Tensor, "rows columns d_model"], numbers: list[int], source: Float[Tensor, "runs tokens d_model"],
        clean: bool,
    ) -> None:
        """Puts these cells' vectors of the clean run, or of the corrupted ones, at the first column of their rows, in place."""
        if numbers:
            rows = (torch.tensor(numbers)[:, None] * self.samples + torch.arange(self.samples)).flatten()
            runs = self._rows[rows]
            runs = runs - runs % self.passes.rows if clean else runs
            x[rows.to(x.device), 0] = source[runs.to(source.device), self._columns[rows, 0].to(source.device)].to(x)

    def _hooks(self):
        if not self.start:
            noisy = self._corrupted(self.passes.embedded)
            yield self.decoder.embedding.register_forward_hook(lambda module, args, output: noisy)
        for site in ("mlp_out", "attn_out"):
            severed = [i for i, cell in enumerate(self.cells) if cell.severed == site]
            for layer in range(self.start, self.decoder.sites.layers - (self.columns > 1)):
                restored = [i for i, cell in enumerate(self.cells) if cell.site == site and cell.low <= layer < cell.high]
                if restored or severed:
                    module = self.decoder.module(site, layer)
                    yield module.register_forward_hook(self._changing(restored, severed, self.passes.outputs[site][layer]))

    def _changing(self, restored: list[int], severed: list[int], source: Float[Tensor, "runs tokens d_model"]):
        def change(module, args, output):
            changed = by_row(first(output), len(self._rows)).clone()
            self._put(changed, restored, source, clean=True)
            self._put(changed, severed, source, clean=False)
            changed = changed.reshape(first(output).shape)
            return changed if isinstance(output, Tensor) else (changed, *output[1:])
        return change
