"""The tf-idf vectoriser of the reference score: published vocabulary and idf, or fitted on snippet texts."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from common.errors import UserError
from data.download import Unavailable, cache_folder, fetch
from data.files import read_json, write_atomically, write_json
from data.snippets import Snippets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TfIdf:
    """``vectorizer.transform(texts)`` gives L2-normalised rows, float64 [texts, terms]; ``source`` says where it is from."""

    vectorizer: TfidfVectorizer
    source: str


def published(data_dir: str | Path | None = None) -> TfIdf:
    """The published vocabulary (``tfidf_vocab.json``) and inverse document frequencies (``idf.npy``), MEMIT's own.

    Raises ``UserError`` when they are missing and can't be downloaded, or do not fit together.
    """
    vocabulary_path, idf_path = fetch("tfidf_vocab.json", data_dir), fetch("idf.npy", data_dir)
    return TfIdf(_vectorizer(read_json(vocabulary_path), _read_idf(idf_path), str(idf_path)), "published")


def fitted(snippets: Snippets, cache_dir: Path | None = None) -> TfIdf:
    """tf-idf fitted on every text of ``snippets``, each a document, as the published code does where it can't download.

    The texts pass one at a time. With ``cache_dir`` the result for a file of snippets is kept there.
    """
    vocabulary_path = idf_path = None
    if cache_dir is not None and snippets.sha256 is not None:
        vocabulary_path = cache_dir / f"tfidf-{snippets.sha256[:16]}.json"
        idf_path = cache_dir / f"tfidf-{snippets.sha256[:16]}.npy"
    source = f"fitted on {snippets.source}"
    if idf_path is not None and idf_path.exists():
        return TfIdf(_vectorizer(read_json(vocabulary_path), _read_idf(idf_path), str(idf_path)), source)
    pairs = tqdm(snippets, desc=f"tf-idf of {snippets.source}", unit="record", delay=1)
    vocabulary, idf = fit(sample.text for pair in pairs for sample in snippets.samples(*pair))
    if not vocabulary:
        raise UserError(f"{snippets.source}: its texts have no words to fit tf-idf on")
    if idf_path is not None:
        write_json(vocabulary_path, vocabulary)
        # Written last: where it is, both are.
        write_atomically(idf_path, lambda file: np.save(file, idf, allow_pickle=False))
    return TfIdf(_vectorizer(vocabulary, idf, source), source)


def published_or_fitted(snippets: Snippets, data_dir: str | Path | None = None) -> TfIdf:
    """:func:`published`, or, with a warning, :func:`fitted` where the published files are not to be had.

    Reference scores of the two are not comparable; ``source`` tells them apart.
    """
    try:
        return published(data_dir)
    except Unavailable as error:
        log.warning("tf-idf is fitted on the texts of %s instead of the published one, so reference scores differ "
                    "from published scores: %s", snippets.source, error)
        return fitted(snippets, cache_folder(data_dir))


def fit(texts: Iterable[str]) -> tuple[dict[str, int], np.ndarray]:
    """Vocabulary and idf [terms] that ``TfidfVectorizer().fit(texts)`` would find (smooth idf: ln((1 + n) / (1 + df)) + 1).

    It counts documents as they pass, where scikit-learn's ``fit`` would hold all counts of all of them in memory.
    """
    words_of = TfidfVectorizer().build_analyzer()
    documents, frequency = 0, Counter()
    for text in texts:
        documents += 1
        frequency.update(set(words_of(text)))
    terms = sorted(frequency)
    counts = np.array([frequency[term] for term in terms], dtype=np.float64)
    return {term: column for column, term in enumerate(terms)}, np.log((1 + documents) / (1 + counts)) + 1


def _vectorizer(vocabulary: dict[str, int], idf: np.ndarray, source: str) -> TfidfVectorizer:
    terms = len(vocabulary)
    if not isinstance(vocabulary, dict) or set(vocabulary.values()) != set(range(terms)) or idf.shape != (terms,):
        raise UserError(f"{source}: {idf.shape} inverse document frequencies do not fit the vocabulary of {terms} terms "
                        "beside it; download both again")
    vectorizer = TfidfVectorizer(vocabulary=vocabulary)
    vectorizer.idf_ = idf
    return vectorizer


def _read_idf(path: Path) -> np.ndarray:
    try:
        idf = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error}); delete it to have it downloaded again") from error
    if idf.ndim != 1 or not np.issubdtype(idf.dtype, np.floating) or not np.isfinite(idf).all():
        raise UserError(f"{path}: expected one row of finite numbers, found {idf.dtype} of shape {idf.shape}")
    return idf
