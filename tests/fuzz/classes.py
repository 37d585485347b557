"""The classes of bad inputs."""

import contextlib
import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import editors
from common.errors import UserError
from common.tensor_files import read_tensors, write_tensors
from data.facts import read_facts
from editors.changes import Dense, LowRank
from editors.core import moment_store
from editors.core.moment import IDENTITY
from editors.core.prompts import parse_requests
from editors.heads.corrections import Corrections
from editors.learned import checkpoint
from editors.memory.store import EditStore
from experiments import collect_stats, memory
from experiments.run import head_files
from experiments.run.cli import run_program
from experiments.run.config import command_line, RunConfig
from tests.conftest import ROOT
from tests.fuzz import Case, Failure, refused

ODD = [None, True, -1, 0, 1.5, 10**30, -(10**400), float("nan"), float("inf"), 1e300, "", " ", "x", "{}", "{} {}", "\x00",
       "à\ud800", [], [[]], {}, {"a": {}}, [None], "9" * 5000, "../../etc/passwd", "${nope}", "<b>", "true"]


# Files of tensors

def _edit(path: Path) -> None:
    editors.Edit({"a.weight": LowRank(torch.ones(4, 2), torch.ones(3, 2)), "b": Dense(torch.ones(2, 2))}, {"x": 1}).save(path)


def _statistics(path: Path) -> None:
    sums = {"mom2": torch.eye(6), "key_sum": torch.ones(6), "norm_sum": torch.tensor(3.0)}
    moment_store.save(path, sums, dict.fromkeys(IDENTITY, 0) | {"count": 3, "layer": 0})


def _memory(path: Path) -> None:
    store = EditStore()
    for number in range(3):
        store.add(f"question {number}", "answer")
    store.vectors(lambda entries: torch.ones(len(entries), 4), "encoder")
    store.save(path, {})


def _corrections(path: Path) -> None:
    Corrections([(1, 2), (0, 1)], torch.ones(2, 4), {"model": "m"}).save(path)


def _trained(path: Path) -> None:
    write_tensors(path, {"net/x": torch.ones(3)}, {"format": 1, "about": {"algorithm": "mend"}, "info": {}})


TENSORS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "edit": (_edit, editors.Edit.load),
    "statistics": (_statistics, lambda path: moment_store.load(path, dict.fromkeys(IDENTITY, 0), 6)),
    "memory": (_memory, EditStore.load), "corrections": (_corrections, Corrections.load),
    "trained": (_trained, checkpoint.read), "delta": (_edit, head_files.read_delta),
}


def _damaged(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    way = chance.randrange(8)
    if way == 0:
        return content[:place]
    if way == 1:
        return content + chance.randbytes(chance.randrange(1, 9))
    if way == 2:
        return content[:place] + content[place + 1:]
    if way == 3:
        return chance.randbytes(chance.choice([0, 3, 8, 50, 500]))
    if way == 4:
        size = chance.choice([0, 1, 2**31, 2**63, 2**64 - 1])
        return size.to_bytes(8, "little") + content[8:]
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 5])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def tensors_of(kind: str) -> Case:
    """Bits, bytes and lengths of a file of tensors are changed, or what its header says."""
    write, read = TENSORS[kind]

    def case(chance: random.Random, folder: Path) -> str:
        path = folder / "x.safetensors"
        write(path)
        content = path.read_bytes()
        if chance.random() < 0.7:
            changed = _damaged(content, chance)
            path.write_bytes(changed)
            try:
                read(path)
            except UserError as error:
                return refused(error)
            if changed != content:
                raise Failure("a damaged file was accepted")
            return "accepted"
        header, tensors = read_tensors(path, "file")
        key = "edit" if "changes" in header else "header"
        if chance.random() < 0.5:
            header = changed_json(header, chance)
        else:
            name = chance.choice(sorted(tensors))
            tensors[name] = chance.choice([
                torch.zeros(0), torch.ones(7), torch.ones(1, 2, 3), torch.full_like(tensors[name].double(), float("nan")),
                torch.zeros(tensors[name].shape, dtype=torch.int64), torch.ones((), dtype=torch.bool)])
        write_tensors(path, tensors, header if isinstance(header, dict) else {"x": header}, key)
        read(path)  # well made, of another content: refused, or what it says
        return "accepted"

    return case


class _Harmful:
    """Runs when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def pickles(chance: random.Random, folder: Path) -> str:
    """A pickle that does something, under the names of all files that are read."""
    path, trace = folder / f"x.{chance.choice(['safetensors', 'pt', 'npy', 'npz', 'memory', 'bin'])}", folder / "executed"
    content = pickle.dumps(_Harmful(trace))
    if chance.random() < 0.5:
        torch.save(_Harmful(trace), path)
    else:
        path.write_bytes(content)
    readers = [editors.Edit.load, EditStore.load, Corrections.load, checkpoint.read, head_files.read_heads,
               head_files.read_delta, lambda p: head_files.read_corrections(p, [(0, 0)]),
               lambda p: moment_store.load_published(p, {"n_samples": 1}, 3)]
    try:
        chance.choice(readers)(path)
    except UserError as error:
        if trace.exists():
            raise Failure("a pickle was executed") from error
        return refused(error)
    raise Failure("a pickle was accepted")


# JSON

def changed_json(content: Any, chance: random.Random) -> Any:
    """The content with something odd in one place, or without something."""
    if isinstance(content, dict) and content and chance.random() < 0.85:
        key = chance.choice(sorted(content, key=str))
        way = chance.random()
        if way < 0.1:
            return {name: value for name, value in content.items() if name != key}
        if way < 0.15:
            return content | {key + chance.choice(["s", "", "_"]): content[key], "nonsense": 1}
        return content | {key: changed_json(content[key], chance)}
    if isinstance(content, list) and content and chance.random() < 0.7:
        place = chance.randrange(len(content))
        return [changed_json(value, chance) if i == place else value for i, value in enumerate(content)]
    return chance.choice(ODD)


def _text_of(content: Any, chance: random.Random) -> bytes:
    text = json.dumps(content).encode()
    way = chance.randrange(8)
    if way == 0:
        return _damaged(text, chance)
    if way == 1:
        return b"[" * 100_000 + text
    if way == 2:
        return text.replace(b"1", b"1" + b"0" * 5000, 1)
    return text


HPARAMS = sorted(path for path in (ROOT / "hparams").glob("*/*.json"))


def hparams(chance: random.Random, folder: Path) -> str:
    """A published file of hyper-parameters with something odd in it."""
    path = chance.choice(HPARAMS)
    name, content = path.parent.name, changed_json(json.loads(path.read_text()), chance)
    if name not in editors.names():
        name = "MEMIT"
    written = folder / "hparams.json"
    written.write_bytes(_text_of(content, chance))
    editors.load(name, written)
    return "accepted"


REQUEST = {"case_id": 1, "prompt": "{} plays the", "subject": "Orla Venn", "target_new": {"str": "drum"},
           "target_true": {"str": "flute"}}


def requests(chance: random.Random, folder: Path) -> str:
    """Requests as Python gives them."""
    parse_requests(changed_json([REQUEST, {**REQUEST, "subject": "Mira"}], chance))
    return "accepted"


def facts(chance: random.Random, folder: Path) -> str:
    """A file of facts."""
    path = folder / chance.choice(["x.json", "x.jsonl", "x.csv", "x.txt", "x"])
    rows = [{"prompt": "{} plays the", "subject": "Orla", "target": "drum"}, REQUEST]
    if path.suffix == ".csv":
        path.write_bytes(_damaged(b"prompt,subject,target\n{} plays,Orla,drum\n", chance))
    elif path.suffix == ".jsonl":
        path.write_bytes(b"\n".join(_text_of(changed_json(row, chance), chance) for row in rows))
    else:
        path.write_bytes(_text_of(changed_json(rows, chance), chance))
    read_facts(path)
    return "accepted"


def edits_of_memory(chance: random.Random, folder: Path) -> str:
    """A file of edits for a memory."""
    path = folder / "x.jsonl"
    path.write_bytes(_text_of(changed_json(chance.choice([{"input": "a", "label": "b"}, REQUEST]), chance), chance))
    memory.add_from(EditStore(), path)
    return "accepted"


# Flags

OF_COLLECT_STATS = ["--layers", "--sample_size", "--precision", "--to_collect", "--batch_tokens", "--max_keys", "--pack_tokens",
                    "--download", "--alg_name", "--dtype", "--device"]
WORDS = ["", "-1", "0", "x", "nan", "inf", "1e400", "9" * 40, "9" * 5000, "1-", "0-999999999", "a,b", "[]", "{}", "null",
         "true", "\x00", "à\ud800", "/", "/dev/null", "../x", "--", "-h5", "%s", "5.5", " 3", "１"]


def flags(chance: random.Random, folder: Path) -> str:
    """The flags of experiments.evaluate up to the point where a model would be loaded, and of collect_stats."""
    evaluates = chance.random() < 0.6

    def main() -> None:
        if evaluates:
            RunConfig(**vars(command_line("evaluate").parse_args(words))).complete()
        else:
            collect_stats._settings(collect_stats._parse(words))

    parser = command_line("evaluate")
    names = [name for action in parser._actions for name in action.option_strings if name not in ("-h", "--help")]
    words = ["--alg_name", "MEMIT", "--model_name", "gpt2-xl"] if evaluates else ["--model_name", "gpt2-xl"]
    options = names if evaluates else OF_COLLECT_STATS
    for _ in range(chance.randrange(1, 4)):
        words += [chance.choice(options)] + ([chance.choice(WORDS)] if chance.random() < 0.9 else [])
    said = io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            run_program(main)
    except SystemExit as ended:
        errors = [line for line in said.getvalue().splitlines() if not line.startswith("warning: ")]
        if ended.code != 2 or len(errors) != 1 or not errors[0].startswith("error: "):
            raise Failure(f"{words}: exit code {ended.code} and {said.getvalue()[:300]!r}") from None
        return "refused"
    finally:
        os.chdir(before)
        if any(folder.iterdir()):
            raise Failure(f"{words}: left {sorted(path.name for path in folder.iterdir())}")
    return "accepted"


CLASSES: dict[str, Case] = {
    **{f"tensors: {kind}": tensors_of(kind) for kind in TENSORS},
    "pickles": pickles, "hparams": hparams, "requests": requests, "facts": facts, "edits of a memory": edits_of_memory,
    "flags": flags,
}
