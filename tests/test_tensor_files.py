"""Files of tensors come back as they were written, or are told to be damaged."""

import json
import random
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.tensor_files import DamagedFile, read_tensors, write_tensors

HEADER = {"batches": 3, "lr": 0.1, "name": "à", "nested": {"1": [1, None, True]}}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(5, 4, generator=generator)
    return {"f32": numbers, "f64": numbers.double(), "bf16": numbers.bfloat16(), "f16": numbers.half(),
            "scalar": torch.tensor(2.0), "ids": torch.arange(3),
            "bytes": torch.arange(3, dtype=torch.uint8), "flags": torch.tensor([True, False]),
            "nothing": torch.zeros(0, 4), "turned": numbers.T}


@pytest.fixture
def path(tmp_path, tensors):
    write_tensors(tmp_path / "x.safetensors", tensors, HEADER)
    return tmp_path / "x.safetensors"


def test_what_is_written_comes_back(path, tensors):
    header, back = read_tensors(path, "file", header={"batches": int, "name": str}, shapes={"f32": [5, None], "scalar": []})
    assert header == HEADER and back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
    back["f32"].zero_()  # of the reader alone
    assert torch.equal(read_tensors(path, "file")[1]["f32"], tensors["f32"])
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(path).items())


def test_no_bit_changes_in_silence(path):
    whole, random_bit = path.read_bytes(), random.Random(0)
    start = int.from_bytes(whole[:8], "little") + 8
    places = [random_bit.randrange(8) for _ in range(20)] + [random_bit.randrange(8, start) for _ in range(200)]
    places += [random_bit.randrange(start, len(whole)) for _ in range(200)]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << random_bit.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedFile, match="run again$"):
            read_tensors(path, "file")
    for length in (0, 5, 8, 20, start, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            read_tensors(path, "file")
    path.write_bytes(whole + b"0")
    with pytest.raises(DamagedFile, match="length"):
        read_tensors(path, "file")


@pytest.mark.parametrize("expected, reason", [
    ({"header": {"absent": int}}, "'absent'"), ({"header": {"name": int}}, "'name'"),
    ({"shapes": {"f32": [5]}}, r"shape \[5, 4\]"), ({"shapes": {"f32": [4, None]}}, r"\[4, 'any'\]"),
    ({"shapes": {"absent": []}}, "no 'absent'"),
])
def test_another_form(path, expected, reason):
    with pytest.raises(DamagedFile, match=reason):
        read_tensors(path, "file", **expected)


def test_what_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for value in (float("nan"), float("inf")):
        write_tensors(path, {"x": torch.tensor([1.0, value])})
        with pytest.raises(DamagedFile, match="NaN or infinity"):
            read_tensors(path, "file")
        write_tensors(path, {}, {"losses": (0.5, value)})
        assert read_tensors(path, "file")[0] == {"losses": [0.5, None]}


def test_older_files_are_read_with_a_word(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(2)}, path, metadata={"header": json.dumps(HEADER)})
    with pytest.warns(UserWarning, match="older than checksums") as caught:
        header, back = read_tensors(path, "file")
    assert len(caught) == 1 and header == HEADER and back["x"].tolist() == [1, 1]


@pytest.mark.parametrize("entries", [
    [], None, 3, {"x": 1}, {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
    {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
    {"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, {"__metadata__": {"header": 3}},
    {"__metadata__": {"header": "[" * 100_000}}, {"__metadata__": {"hfader": "{}"}}, {"__metadata__": {"header": "[]"}},
])
def test_odd_descriptions(tmp_path, entries):
    path, text = tmp_path / "x.safetensors", json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(DamagedFile):
        read_tensors(path, "file")


def test_readers_see_one_version(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.full((99,), 0.0)}, {"value": 0.0})

    def write():
        for number in range(150):
            write_tensors(path, {"x": torch.full((99,), float(number))}, {"value": float(number)})

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        header, tensors = read_tensors(path, "file")
        assert set(tensors["x"].tolist()) == {header["value"]}
