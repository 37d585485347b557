"""Packs shuffled sentences into rows of tokens: the order is a pure function of (seed, epoch)."""
import random

import torch

# The share of sentences that follow an end-of-text token, and so begin without a space. A name that has more tokens without
# its space is seen in that form at such places only: its sentences begin there more often.
END_SHARE, END_SHARE_OF_NAMES = 0.3, 0.8


class PackedCorpus:
    """The corpus as rows of `length` tokens, one shuffled pass an epoch.

    Every row begins with a sentence, so that facts are also learned at position 0. A sentence that does not fit is cut at
    the row's end and begins the next row as a whole.
    """

    def __init__(self, tok, sentences: list[str], ranks: list[int], length: int, seed: int):
        """ranks: for each sentence the rank of its subject, -1 for sentences about none. length: tokens of a row. seed: of the
        order."""
        self._bare = tok(sentences)["input_ids"]
        self._spaced = tok([" " + s for s in sentences])["input_ids"]
        self._ranks = ranks
        self._end_share = [END_SHARE_OF_NAMES if rank >= 0 and len(bare) > len(spaced) else END_SHARE
                           for rank, bare, spaced in zip(ranks, self._bare, self._spaced)]
        self._end, self._length, self._seed = tok.eos_token_id, length, seed

    def epoch(self, number: int, subjects: int | None = None) -> torch.Tensor:
        """Rows of epoch `number`, int64 [rows, length]; with `subjects`, only sentences of that many first subjects."""
        rng = random.Random(f"{self._seed}-{number}")
        order = [i for i, rank in enumerate(self._ranks) if subjects is None or rank < subjects]
        rng.shuffle(order)
        rows, row, position = [], [], 0
        while position < len(order):
            i = order[position]
            first = not row
            if first:
                row = list(self._bare[i])
            elif rng.random() < self._end_share[i]:
                row += [self._end] + self._bare[i]
            else:
                row += self._spaced[i]
            if first or len(row) <= self._length:
                position += 1
            if len(row) >= self._length:
                rows.append(row[:self._length])
                row = []
        return torch.tensor(rows)

    def alone(self, number: int, rows: int) -> list[torch.Tensor]:
        """Every sentence by itself at position 0, as a prompt stands, in batches of `rows`; padded with -1."""
        order = random.Random(f"{self._seed}-{number}").sample(range(len(self._bare)), len(self._bare))
        sentences = [torch.tensor([*self._bare[i], self._end]) for i in order]
        return [torch.nn.utils.rnn.pad_sequence(sentences[start:start + rows], batch_first=True, padding_value=-1)
                for start in range(0, len(sentences), rows)]
