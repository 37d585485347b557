"""Rephrasings as published: translated there and back, several beams each way."""
import string
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from common.errors import UserError

_DROPPED = str.maketrans("", "", string.punctuation + string.whitespace)


def normalised(text: str) -> str:
    """The text in lower case without spaces and punctuation: texts that are then equal are one rephrasing."""
    return text.casefold().translate(_DROPPED)


def rephrase(texts: Sequence[str], to_pivot: str, from_pivot: str, beams: int = 5, batch_size: int = 16) -> list[list[str]]:
    """For each text its up to ``beams`` x ``beams`` back-translations, without those that say the text itself or another one.

    to_pivot, from_pivot: translation models of the hub or folders (Marian and other sequence-to-sequence models). The
    published data also leave out those that change the model's answer; a reader of the rows cannot, and no trainer needs it.
    Raises UserError when a model can't be had.
    """
    pivots = translate(list(texts), to_pivot, beams, batch_size)
    flat = [pivot for group in pivots for pivot in group]
    returned = translate(flat, from_pivot, beams, batch_size)
    rephrases, position = [], 0
    for text, group in zip(texts, pivots):
        different = {normalised(text): text}
        for candidates in returned[position:position + len(group)]:
            for candidate in candidates:
                different.setdefault(normalised(candidate), candidate)
        position += len(group)
        different.pop("", None)
        rephrases.append([candidate for candidate in different.values() if candidate != text])
    return rephrases


def translate(texts: Sequence[str], name: str, beams: int, batch_size: int) -> list[list[str]]:
    """The ``beams`` best translations of each text by the model ``name``. Raises UserError when it can't be had."""
    try:
        tok = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"translation model {name} did not load ({reason}); fetch it beforehand or name a folder, or leave out "
                        "both models to rephrase by templates") from error
    return best_beams(model, tok, texts, beams, batch_size, 64)


@torch.no_grad()
def best_beams(model, tok, texts: Sequence[str], beams: int, batch_size: int, length: int) -> list[list[str]]:
    """The ``beams`` best texts of at most ``length`` tokens that a sequence-to-sequence model gives for each text."""
    beams_of = []
    for start in tqdm(range(0, len(texts), batch_size), unit="batch", desc=model.name_or_path):
        batch = tok(list(texts[start:start + batch_size]), padding=True, truncation=True, return_tensors="pt").to(model.device)
        ids = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=beams,
                             num_return_sequences=beams, max_new_tokens=length, do_sample=False)
        lines = [line.strip() for line in tok.batch_decode(ids, skip_special_tokens=True)]
        beams_of += [lines[i:i + beams] for i in range(0, len(lines), beams)]
    return beams_of
