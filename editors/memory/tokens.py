"""Texts as the tokens that a network of SERAC reads: an edit whole, and as much of the end of a text as there is room for."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from common.errors import UserError
from editors.core.modules import longest_context
from editors.core.prompts import encode_target, pad_id


def window(model: nn.Module, tok: Any) -> int:
    """Tokens that an encoder can read."""
    limits = [longest_context(model), getattr(tok, "model_max_length", None)]
    return min([limit for limit in limits if limit], default=10**9)


def encode(
    tok: Any, texts: Sequence[str], longest: int | Sequence[int], fixed: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of `fixed[i] + texts[i]`, with a tokenizer's own tokens around them.

    What is longer than `longest` (of all rows, or of each) loses the beginning of its text, with a warning. Raises UserError
    where what is fixed does not fit by itself.
    """
    fixed = [""] * len(texts) if fixed is None else fixed
    limits = [longest] * len(texts) if isinstance(longest, int) else longest
    rows = tok([a + b for a, b in zip(fixed, texts)], verbose=False).input_ids
    cut = [i for i, row in enumerate(rows) if len(row) > limits[i]]
    for i in cut:
        rows[i] = _cut(tok, fixed[i], texts[i], rows[i], limits[i])
    if cut:
        room = f"the {longest} tokens that can be read" if isinstance(longest, int) else "there is room for"
        warnings.warn(f"{len(cut)} of {len(texts)} inputs are longer than {room}, and are read without their beginning",
                      stacklevel=2)
    return rows


def _cut(tok: Any, fixed: str, text: str, row: list[int], longest: int) -> list[int]:
    """Token ids of `fixed` and as much of the end of the text as fits. row: those of all of it."""
    while len(row) > longest:
        if not text:
            raise UserError(f"the edit {fixed[:60]!r} alone takes {len(row)} tokens, more than the {longest} that can be read: "
                            "shorten it")
        starts = _starts(tok, text)
        over = min(len(row) - longest, len(starts))
        text = text[starts[over]:].lstrip() if over < len(starts) else ""
        row = tok(fixed + text, verbose=False).input_ids
    return row


def _starts(tok: Any, text: str) -> list[int]:
    """Where the text goes on when so many tokens are dropped; a tokenizer that tells no places loses whole words."""
    if tok.is_fast:
        encoding = tok(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        return [start for start, _ in encoding.offset_mapping]
    words = list(re.finditer(r"\S+", text))
    ends = [word.start() for word in words[1:]] + [len(text)]
    counts = [len(tok(word[0], add_special_tokens=False).input_ids) for word in words]
    return [place for word, end, n in zip(words, ends, counts) for place in [word.start()] + [end] * (n - 1)]


def without_end(tok: Any, row: Sequence[int]) -> list[int]:
    """The tokens without the end of text that some tokenizers put behind a text."""
    return list(row[:-1] if len(row) > 1 and row[-1] == tok.eos_token_id else row)


def first_piece(tok: Any, text: str) -> int:
    """The token that `text` begins with where it continues another one."""
    try:
        return encode_target(tok, text)[0]
    except UserError:
        return pad_id(tok)
