"""Downloads of edit data that have an address: all of VitaminC; KILT's zsRE and FEVER, without predictions and rephrases."""
from pathlib import Path

from data.download import download

_VITAMINC = "https://huggingface.co/datasets/tals/vitaminc/resolve/be6febb761b0b2807687e61e0b5282e459df2fa0/{}.jsonl"
_KILT = {"qa": "http://dl.fbaipublicfiles.com/KILT/structured_zeroshot-{}-kilt.jsonl",
         "fc": "http://dl.fbaipublicfiles.com/KILT/fever-{}-kilt.jsonl"}
"""Without checksums: the first download's is recorded, and later ones must agree (see :func:`data.download.download`)."""


def vitaminc(split: str, path: Path) -> None:
    """Downloads the file of a split (train, dev or test) to ``path``. Raises UserError."""
    download(_VITAMINC.format(split), path)


def kilt(experiment: str, split: str, path: Path) -> None:
    """Downloads KILT's rows of a split (train or dev) for the experiment qa or fc. Raises UserError."""
    download(_KILT[experiment].format(split), path)
