"""Corpora: which texts, in which order, and what a user is told when they can't be had."""

import json
import random
import sys
import types

import pytest

from common.errors import UserError
from data import world
from editors.core.corpus import document_order, find_corpus


def write(path, *lines: str):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_jsonl_gives_the_field_text_of_each_line(tmp_path):
    rows = [{"text": "One.\nTwo."}, {"text": ""}, {"text": "Ødegård ", "id": 3}]
    path = write(tmp_path / "c.jsonl", *(json.dumps(row, ensure_ascii=False) for row in rows))
    assert list(find_corpus(path).texts()) == ["One.\nTwo.", "", "Ødegård "]


def test_txt_gives_a_text_a_line_without_blank_ones(tmp_path):
    path = write(tmp_path / "c.txt", "One. ", "", "  ", "Two.\r", "L'últim")
    assert list(find_corpus(path).texts()) == ["One. ", "Two.", "L'últim"]


def test_byte_order_mark_is_no_part_of_the_first_text(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfOne\nTwo")
    assert list(find_corpus(str(tmp_path / "c.txt")).texts()) == ["One", "Two"]


def test_identity_of_a_file_is_its_content(tmp_path):
    first = find_corpus(write(tmp_path / "a.txt", "One."))
    assert find_corpus(write(tmp_path / "b.txt", "One.")).identity == first.identity
    assert first.slug.startswith("a-")
    changed = find_corpus(write(tmp_path / "a.txt", "Two, written over the old file."))
    assert changed.identity != first.identity and changed.slug != first.slug
    assert list(changed.texts()) == ["Two, written over the old file."]


def test_published_names_stand_for_hub_data_sets():
    assert find_corpus("wikipedia").identity == "hub:wikimedia/wikipedia:20231101.en:train"
    assert find_corpus("wikitext").identity == "hub:Salesforce/wikitext:wikitext-103-raw-v1:train"
    other = find_corpus("owner/name:config")
    assert (other.identity, other.slug) == ("hub:owner/name:config:train", "owner_name_config")


def test_order_is_the_published_shuffle():
    order = list(range(312))
    random.Random(1).shuffle(order)
    assert document_order(312, 100) == order[:100]
    assert document_order(312, "all") == order
    with pytest.warns(UserWarning, match="312 documents, fewer than the 1000"):
        assert document_order(312, 1000) == order


@pytest.mark.parametrize("name, message", [
    ("wikipdia", "did you mean 'wikipedia'"),
    ("nonsense", "give wikipedia, wikitext, world, owner/name"),
    ("missing.jsonl", "no such file"),
    ("missing/folder/c.txt", "no such file"),
])
def test_unknown_corpora(name, message):
    with pytest.raises(UserError, match=message):
        find_corpus(name)


def test_other_kinds_of_file(tmp_path):
    (tmp_path / "c.csv").write_text("text\nOne")
    with pytest.raises(UserError, match="is a .jsonl or .txt file"):
        find_corpus(str(tmp_path / "c.csv"))
    with pytest.raises(UserError, match="is a .jsonl or .txt file"):
        find_corpus(str(tmp_path))
    with pytest.raises(UserError, match="holds no text"):
        find_corpus(write(tmp_path / "c.txt", "", " "))


@pytest.mark.parametrize("line, message", [
    ('{"text": "cut off', "not a JSON object with a field 'text'"),
    ('{"content": "One."}', "not a JSON object with a field 'text'"),
    ('["One."]', "not a JSON object with a field 'text'"),
    ('{"text": 3}', "holds a int"),
])
def test_bad_lines_are_named(tmp_path, line, message):
    texts = find_corpus(write(tmp_path / "c.jsonl", '{"text": "One."}', "", line, '{"text": "Two."}')).texts()
    assert (texts[0], texts[2]) == ("One.", "Two.")
    with pytest.raises(UserError, match=f"line 3: .*{message}"):
        texts[1]


def test_bad_encoding_is_named(tmp_path):
    (tmp_path / "c.txt").write_bytes("One\nÒrbita".encode("latin-1"))
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        list(find_corpus(str(tmp_path / "c.txt")).texts())


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`: `hub.load_dataset` is what the test wants it to be."""
    module = types.SimpleNamespace(exceptions=types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {})))
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


class Rows(list):
    column_names = ["id", "text"]


def test_hub_data_set(hub):
    loaded_names = []

    def load_dataset(name, config, split):
        loaded_names.append((name, config, split))
        return Rows([{"id": 1, "text": "One."}, {"id": 2, "text": "Two."}])

    hub.load_dataset = load_dataset
    assert list(find_corpus("wikipedia").texts()) == ["One.", "Two."]
    assert list(find_corpus("owner/name").texts()) == ["One.", "Two."]
    assert loaded_names == [("wikimedia/wikipedia", "20231101.en", "train"), ("owner/name", None, "train")]


def test_hub_data_set_without_texts(hub):
    hub.load_dataset = lambda name, config, split: types.SimpleNamespace(column_names=["label", "sentence"])
    with pytest.raises(UserError, match="has no field 'text', only label, sentence"):
        find_corpus("owner/name").texts()


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach\nthe Hub"), ValueError("BuilderConfig 'x' not found")])
def test_hub_that_gives_nothing(hub, error):
    def load_dataset(name, config, split):
        raise error

    hub.load_dataset = load_dataset
    message = r"wikimedia/wikipedia \(20231101.en\) did not load .* path of a .jsonl or .txt"
    with pytest.raises(UserError, match=message) as caught:
        find_corpus("wikipedia").texts()
    assert "\n" not in str(caught.value)


def test_the_world_s_corpus_has_a_name():
    """The same statistics as by the path of its file."""
    named, file = find_corpus("world"), find_corpus(str(world.corpus_path()))
    assert (named.identity, named.slug, list(named.texts())[:3]) == (file.identity, file.slug, list(file.texts())[:3])
