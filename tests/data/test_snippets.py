"""Attribute snippets, read from a file that is never whole in memory, and the tf-idf of the reference score."""

import json
import logging
import tracemalloc

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from common.errors import UserError
from data import jsonstream, snippets, tfidf
import data
from data.snippets import Snippet


@pytest.fixture
def raw(golden):
    return json.loads((golden / "attribute_snippets.json").read_text(encoding="utf-8"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("KE_DATA_URL", "http://127.0.0.1:9/")  # nobody listens there
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def published_form(raw):
    """(relation, target) -> samples, as the published loader builds it."""
    return {(r["relation_id"], r["target_id"]): tuple(Snippet(s["name"], s["text"]) for s in r["samples"]) for r in raw}


def test_a_file_is_read_as_published(golden, raw, tmp_path):
    opened = snippets.open_file(golden / "attribute_snippets.json", tmp_path)
    expected = published_form(raw)
    assert set(opened) == set(expected) and len(opened) == len(expected)
    assert {pair: opened.samples(*pair) for pair in opened} == expected
    assert any(not s.text.isascii() for samples in expected.values() for s in samples)  # so byte and character places differ
    assert ("P1", "Q102") in opened and ("P1", "Q1") not in opened
    with pytest.raises(UserError, match="attribute_snippets.json: no attribute snippets for relation 'P1' and target None"):
        opened.samples("P1", None)
    in_memory = snippets.from_records(raw, "mine")
    assert {pair: in_memory.samples(*pair) for pair in in_memory} == expected


def test_a_file_is_read_through_once(golden, tmp_path, monkeypatch):
    path = tmp_path / "own.json"
    path.write_bytes((golden / "attribute_snippets.json").read_bytes())
    first = snippets.open_file(path, tmp_path / "cache")
    monkeypatch.setattr(snippets, "iterate", lambda path: pytest.fail("read again"))
    again = snippets.open_file(path, tmp_path / "cache")
    assert [again.samples(*pair) for pair in again] == [first.samples(*pair) for pair in first]
    monkeypatch.undo()
    changed = [{"relation_id": "P9", "target_id": "Q9", "samples": [{"name": "é", "text": ""}]}] * 2
    path.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")
    other = snippets.open_file(path, tmp_path / "cache")  # another content has another index
    assert list(other) == [("P9", "Q9")] and other.samples("P9", "Q9") == (Snippet("é", ""),)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_elements_and_their_places_whatever_the_chunk(tmp_path, chunk, indent):
    elements = [{"a": 'é "q" \\ \u2028 ☃', "n": [1, -2.5e3, True, None]}, {}, {"long": "ñ" * 200}, {"b": {"c": "]},["}}]
    path = tmp_path / "list.json"
    path.write_text(" " + json.dumps(elements, ensure_ascii=False, indent=indent) + "\n ", encoding="utf-8")
    content = path.read_bytes()
    iterated = list(jsonstream.iterate(path, chunk))
    assert [value for value, _, _ in iterated] == elements
    assert [json.loads(content[start:start + length]) for _, start, length in iterated] == elements
    assert all(content[start:start + 1] + content[start + length - 1:start + length] == b"{}" for _, start, length in iterated)


@pytest.mark.parametrize("chunk", [1, 16, 1 << 20])
def test_every_cut_file_is_noticed(tmp_path, chunk):
    content = json.dumps([{"a": "é", "n": 12}, {"b": [True, "x"]}], ensure_ascii=False).encode()
    path = tmp_path / "cut.json"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut.json: not valid JSON .* cut off or damaged"):
            list(jsonstream.iterate(path, chunk))
    path.write_bytes(content)
    assert len(list(jsonstream.iterate(path, chunk))) == 2


@pytest.mark.parametrize("content", [
    "{}", "[{} {}]", "[{},]", "[{}] x", '[{"a": tru}, {"b": "' + "x" * 500 + '"}]', '[{"a" 1}' + " " * 500 + "]"])
def test_wrong_json_is_noticed_where_it_is(tmp_path, content):
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(UserError, match="wrong.json: not valid JSON"):
        list(jsonstream.iterate(path, 32))


def test_an_empty_list(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text(" [ ] ")
    assert list(jsonstream.iterate(path)) == []


def test_a_large_file_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "large.json"
    record = {"relation_id": "P1", "samples": [{"name": "n", "text": "word " * 2000}] * 2}
    with open(path, "w") as file:
        file.write("[" + ", ".join(json.dumps({**record, "target_id": f"Q{i}"}) for i in range(1500)) + "]")
    assert path.stat().st_size > 30e6
    tracemalloc.start()
    try:
        opened = snippets.open_file(path, tmp_path / "cache")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(opened) == 1500 and opened.samples("P1", "Q1499")[1].text.startswith("word word")
    assert peak < path.stat().st_size / 1.5


@pytest.mark.parametrize("record, complaint", [
    ({"target_id": "Q1", "samples": []}, "record 1: the key 'relation_id' is missing"),
    ({"relation_id": "P1", "target_id": 3, "samples": []}, "record 1: 'target_id' should be a string, found 3"),
    ({"relation_id": "P1", "target_id": "Q1"}, "record 1: the key 'samples' is missing"),
    ({"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "a"}]}, "record 1, 'samples' 0: the key 'text' is missing"),
])
def test_wrong_records_are_named(tmp_path, raw, record, complaint):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps([raw[0], record]))
    for attempt in range(2):  # nothing half-made is left that a second run would take for whole
        with pytest.raises(UserError) as error:
            snippets.open_file(path, tmp_path / "cache")
        assert complaint in str(error.value)
    with pytest.raises(UserError, match="none.json: no such file"):
        snippets.open_file(tmp_path / "none.json", tmp_path)


def texts_of(raw):
    return [sample["text"] for record in raw for sample in record["samples"]]


def test_fit_equals_scikit_learns(raw):
    theirs = TfidfVectorizer().fit(texts_of(raw))
    vocabulary, idf = tfidf.fit(iter(texts_of(raw)))
    assert vocabulary == theirs.vocabulary_
    np.testing.assert_allclose(idf, theirs.idf_, rtol=1e-15)


def cosine(vectorizer, one, other):
    a, b = vectorizer.transform([one, other]).toarray()
    return float(a @ b)


def test_similarities_equal_the_published_code(golden, offline, tmp_path):
    expected = json.loads((golden / "metrics_tiny-gpt2.json").read_text(encoding="utf-8"))["tfidf"]
    fitted = data.load_tfidf(snippets.open_file(golden / "attribute_snippets.json", tmp_path), tmp_path)
    assert expected and any(0 < entry["sim"] < 0.9 for entry in expected)
    for entry in expected:
        assert cosine(fitted.vectorizer, entry["a"], entry["b"]) == pytest.approx(entry["sim"], abs=1e-12)


def test_the_fallback_is_said_and_kept(golden, offline, tmp_path, caplog, monkeypatch):
    snips = snippets.open_file(golden / "attribute_snippets.json", tmp_path)
    first = data.load_tfidf(snips, tmp_path)
    assert first.source == "fitted on attribute_snippets.json"
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "tf-idf is fitted on the texts of attribute_snippets.json instead of the published one" in record.getMessage()
    assert "tfidf_vocab.json is not in" in record.getMessage() and "\n" not in record.getMessage()
    monkeypatch.setattr(tfidf, "fit", lambda texts: pytest.fail("fitted again"))
    again = data.load_tfidf(snips, tmp_path)
    np.testing.assert_array_equal(again.vectorizer.idf_, first.vectorizer.idf_)
    assert again.vectorizer.vocabulary == first.vectorizer.vocabulary and again.source == first.source


def write_published(folder, vocabulary, idf):
    folder.mkdir(exist_ok=True)
    (folder / "tfidf_vocab.json").write_text(json.dumps(vocabulary))
    np.save(folder / "idf.npy", idf)


def test_the_published_files_are_used_where_they_are(golden, offline, tmp_path, raw):
    theirs = TfidfVectorizer().fit(texts_of(raw))
    write_published(tmp_path, {term: int(place) for term, place in theirs.vocabulary_.items()}, theirs.idf_ * 2)
    loaded = data.load_tfidf(snippets.from_records(raw, "x"), tmp_path)
    assert loaded.source == "published"
    np.testing.assert_array_equal(loaded.vectorizer.idf_, theirs.idf_ * 2)
    rows = loaded.vectorizer.transform(texts_of(raw)).toarray()
    np.testing.assert_allclose(rows, theirs.transform(texts_of(raw)).toarray(), atol=1e-15)  # the factor 2 is normalised away


@pytest.mark.parametrize("vocabulary, idf, complaint", [
    ({"a": 0, "b": 1}, np.ones(3), "do not fit the vocabulary of 2 terms"),
    ({"a": 0, "b": 2}, np.ones(2), "do not fit the vocabulary"),
    (["a", "b"], np.ones(2), "do not fit the vocabulary"),
    ({"a": 0, "b": "1"}, np.ones(2), "do not fit the vocabulary"),
    ({"a": 0, "b": 1}, np.array([1, np.nan]), "expected one row of finite numbers"),
    ({"a": 0, "b": 1}, np.ones((2, 1)), "of shape (2, 1)"),
    ({"a": 0, "b": 1}, np.array([1, None]), "not a readable .npy file"),  # pickled: never loaded
])
def test_damaged_tfidf_files_are_refused_not_replaced(tmp_path, vocabulary, idf, complaint, raw):
    write_published(tmp_path, vocabulary, idf)
    with pytest.raises(UserError) as error:
        data.load_tfidf(snippets.from_records(raw, "x"), tmp_path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_cut_npy_file_is_refused(tmp_path, raw):
    write_published(tmp_path, {"a": 0, "b": 1}, np.ones(2))
    content = (tmp_path / "idf.npy").read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        (tmp_path / "idf.npy").write_bytes(content[:length])
        with pytest.raises(UserError, match="idf.npy: not a readable .npy file .*delete it"):
            tfidf.published(tmp_path)


def test_texts_without_words():
    wordless = snippets.from_records([{"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "a", "text": "!"}]}], "x")
    with pytest.raises(UserError, match="x: its texts have no words"):
        tfidf.fitted(wordless)


def test_snippets_from_the_data_folder_or_a_path(golden, offline, tmp_path):
    with pytest.raises(UserError, match="attribute_snippets.json is not in .*127.0.0.1:9"):
        data.load_snippets("mcf", tmp_path)
    expected = data.load_snippets("mcf", tmp_path, golden / "attribute_snippets.json")
    (tmp_path / "attribute_snippets.json").write_bytes((golden / "attribute_snippets.json").read_bytes())
    loaded = data.load_snippets("mcf", tmp_path)
    assert loaded.source == "attribute_snippets.json" and set(loaded) == set(expected)
