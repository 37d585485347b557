"""The memory of edits: ids, the rule for conflicts, vectors that are computed once, files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.errors import UserError
from editors.memory.store import EditStore, Entry


def test_newer_edits_hold_and_ids_stay():
    memory = EditStore()
    first, second = memory.add("Where was Ann born?", "Paris"), memory.add("Who leads Orin?", "Paul")
    assert (first, second) == (0, 1)
    assert memory.add("Where was Ann born?", "Paris") == first and len(memory) == 2
    assert memory.add("where was  ann BORN?", "Rome") == first  # a conflict: the same question
    assert list(memory) == [Entry(0, "where was  ann BORN?", "Rome"), Entry(1, "Who leads Orin?", "Paul")]
    memory.remove(first)
    assert [entry.id for entry in memory] == [1] and memory.add("Where was Ann born?", "Oslo") == 2
    assert memory.update(2, label="Bergen") == Entry(2, "Where was Ann born?", "Bergen") == memory[2]
    memory.update(2, input="In which town was Ann born?")
    assert memory.add("Where was Ann born?", "Kiel") == 3


@pytest.mark.parametrize("act, message", [
    (lambda m: m.add(" ", "x"), "input is empty"),
    (lambda m: m.add("Who?", "  "), "has no label"),
    (lambda m: m.update(0, label=""), "has no label"),
    (lambda m: m.update(1, input="who leads ORIN?"), "edit 0 has the input"),
    (lambda m: m.remove(7), "no edit 7; its ids go up to 1"),
    (lambda m: EditStore()[0], "never had any"),
])
def test_bad_edits(act, message):
    memory = EditStore()
    memory.add("Who leads Orin?", "Paul"), memory.add("Where was Ann born?", "Paris")
    before = list(memory)
    with pytest.raises(UserError, match=message):
        act(memory)
    assert list(memory) == before


def test_statements_need_no_label():
    memory = EditStore(labelled=False)
    assert memory.add("Ann moved to Paris.") == 0


def counting():
    embedded_ids = []

    def embed(entries):
        embedded_ids.append([entry.id for entry in entries])
        return torch.tensor([[float(entry.id), float(len(entry.label))] for entry in entries])
    return embedded_ids, embed


def test_vectors_follow_their_edits():
    memory, (embedded_ids, embed) = EditStore(), counting()
    for i in range(5):
        memory.add(f"question {i}", "x" * i + "x")
    memory.vectors(embed, "a")
    assert embedded_ids == [[0, 1, 2, 3, 4]]
    copied = memory.copy()
    copied.remove(1), copied.update(3, label="longer now"), copied.add("question 9", "yes")
    assert copied.vectors(embed, "a").tolist() == [[0, 1], [2, 3], [3, 10], [4, 5], [5, 3]]
    assert embedded_ids[1:] == [[3, 5]]
    assert memory.vectors(embed, "a").tolist() == [[i, i + 1] for i in range(5)] and len(embedded_ids) == 2
    copied.remove(0)
    assert copied.vectors(embed, "a")[:, 0].tolist() == [2, 3, 4, 5] and len(embedded_ids) == 2
    copied.vectors(embed, "another encoder")
    assert embedded_ids[-1] == [2, 3, 4, 5]


def test_files(tmp_path):
    memory, (embedded_ids, embed) = EditStore(), counting()
    memory.add("Où est née Ann?", "Paris\n"), memory.add("b", "c"), memory.remove(1), memory.add("d", "e")
    memory.vectors(embed, "a")
    memory.save(tmp_path / "sub" / "m.safetensors", {"run": "x"})
    loaded, about = EditStore.load(tmp_path / "sub" / "m.safetensors")
    assert list(loaded) == list(memory) and loaded.next_id == 3 and about == {"run": "x"}
    assert torch.equal(loaded.vectors(embed, "a"), memory.vectors(embed, "a")) and len(embedded_ids) == 1
    empty = tmp_path / "empty.safetensors"
    EditStore(labelled=False).save(empty)
    assert len(EditStore.load(empty)[0]) == 0 and not EditStore.load(empty)[0].labelled


def test_bad_files(tmp_path):
    memory, path = EditStore(), tmp_path / "m.safetensors"
    memory.add("a question", "an answer")
    memory.save(path)
    whole = path.read_bytes()
    header = {"kind": "edit memory", "version": 2, "edits": 1, "next_id": 1, "labelled": True, "sha256": "", "about": {}}

    def bad(message):
        with pytest.raises(UserError, match=message) as error:
            EditStore.load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)

    path.write_bytes(whole[:-5])
    bad("truncated or damaged")
    path.write_bytes(whole[:4])
    bad("truncated or damaged")
    tensors = {"edits": torch.zeros(3, dtype=torch.uint8)}
    save_file(tensors, path, metadata={"header": json.dumps(header)})
    bad("version 2, this program reads version 1")
    save_file(tensors, path, metadata={"header": json.dumps(header | {"version": 1})})
    bad("not those that were written")
    save_file(tensors, path)
    bad("not a memory of edits")
    for key in ("next_id", "labelled", "about"):
        lacking = {name: value for name, value in header.items() if name != key} | {"version": 1}
        save_file(tensors, path, metadata={"header": json.dumps(lacking)})
        bad(f"its header has no usable '{key}'")
    memory.vectors(lambda entries: torch.ones(len(entries), 4), "an encoder")
    memory.save(path)
    content = bytearray(path.read_bytes())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    changed = {"edits": load_file(path)["edits"], "vectors": torch.full((1, 4), 2.0)}
    save_file(changed, path, metadata=metadata)
    bad("its content is not what was written")
    older = {name: value for name, value in json.loads(metadata["header"]).items() if name != "checksum"}
    save_file(changed, path, metadata={"header": json.dumps(older)})
    bad("its vectors are not those that were written")
    path.write_bytes(content)
    assert EditStore.load(path)[0]._vectors.tolist() == [[1.0] * 4]
    path.unlink()
    bad("no such memory file")
