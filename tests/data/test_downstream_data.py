"""Downstream tasks: the published subsets are rebuilt, files of each kind read, mistakes named."""

import hashlib
import json
import shutil
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from common.errors import UserError
from data import downstream, world
from data.downstream import POOL, TASKS, Example, balanced, from_the_end, load, subset
from data.world import downstream as exercises

# Labels of the whole GLUE validation sets, one bit a row behind a leading 1, and a check sum of the published subset's order.
GLUE = {
    "sst": (
        "1b4a5c1928bf19d0b39d69df64ba4acbcc82327a908eb1071facf219bdb399ee815235db3e75bbf6c9f1e94c1e3a35905346eca23e6f"
        "a5795b578bad1fc89b4ff269caf4c20465564400c6035d687ea6ad881a9f5779e10f00826d6c07eb472b3cc6bc8e913e9cd633441e5f"
        "c69",
        [427, 190, 179, 604, 174, 96], 856, "05f8662b1e4952e9"),
    "cola": (
        "f8fdbf799f5976cbdbd0a6d65fdb69e39b5bef7799e977793b4edbcf0cfbfebb5d9c4c97ffedb77eff8f6ebecfed77ffb7f77ffffffa"
        "99fff14bab36bffad9b47f5bfcc0c97fff1fcf91e4fcbcaa9e7dbd9fc17fa3fdfc38b1eebccdf96965ffffff57ffff492713bb1dabf3"
        "b8ffbb47ffe71746eee7f3ffe7fcf3fe3fbfe09afb7fb",
        [902, 89, 484, 128], 644, "ea5b4c1608583b99"),
    "rte": (
        "3603321ddb68bd2cd812d72a70020cfde4975261667906605562f8ac695967dd449ae1",
        [91, 171, 78, 9, 32, 275], 262, "3410592bfb596e06"),
}


def glue_labels(name: str) -> list[int]:
    return [int(bit) for bit in f"{int(GLUE[name][0], 16):b}"[1:]]


@pytest.mark.parametrize("name", GLUE)
def test_balanced_subsets_are_the_published_ones(name):
    _, first, size, checksum = GLUE[name]
    rows = subset(name, [{"label": label, "idx": i} for i, label in enumerate(glue_labels(name))])
    order = [row["idx"] for row in rows]
    assert order[:len(first)] == first and len(order) == size == TASKS[name].rows
    assert [row["label"] for row in rows] == [1, 0] * (size // 2)
    assert hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16] == checksum


def test_nli_lacks_a_row_and_starts_at_the_end():
    rows = [{"idx": i, "sentence1": "a", "sentence2": "b", "label": i % 3 == 0} for i in range(2162, 2173)]
    assert [row["index"] for row in subset("nli", rows)] == "2172 2171 2169 2170 2166 2168 2163 2167 2165 2162".split()
    assert subset("nli", rows)[0] == {"index": "2172", "sentence1": "a", "sentence2": "b", "label": "not_entailment"}


def test_turns_end_with_what_is_left():
    assert from_the_end("xyxxy", "yx") == [4, 3, 1, 2, 0]
    assert sorted(balanced([0, 1, 1, 0, 1], [1, 0])[1::2]) == [0, 3]


def test_every_published_file(realdata):
    for name, task in TASKS.items():
        examples = load(name, realdata / "downstream")
        assert len(examples) == task.rows
        turns = [example.label for example in examples[:POOL]]
        assert turns == (turns[:len(task.labels)] * POOL)[:POOL] and len(set(turns)) == len(task.labels)
    counts = {name: Counter(example.label for example in load(name, realdata / "downstream")) for name in TASKS}
    assert counts["nli"] == {1: 1249, 0: 1240} and counts["dialogue"] == {0: 212, 1: 200, 2: 210, 3: 264}
    assert counts["sentiment_analysis"] == {1: 444, 0: 428} and set(counts["mmlu"].values()) == {379}
    assert load("rte", realdata / "downstream")[1].label == 0  # "P. Prayong ... is a member of Theravada": entailed


def published(realdata, name):
    return [json.loads(line) for line in (realdata / "downstream" / f"{TASKS[name].file}.jsonl").open(encoding="utf-8")]


def test_published_files_follow_from_their_sources(realdata):
    nli = published(realdata, "nli")
    numbers = {"entailment": 0, "not_entailment": 1}
    source = [{**row, "idx": int(row["index"]), "label": numbers[row["label"]]} for row in nli]
    source.append({"idx": 2164, "sentence1": "-", "sentence2": "-", "label": 0})
    assert subset("nli", sorted(source, key=lambda row: row["idx"])) == nli

    # All rows of mrpc's smaller class are in the subset; the other class matters by its size only.
    mrpc = [row["idx"] for row in published(realdata, "mrpc")]
    smaller = sorted(mrpc[1::2])
    order = balanced([1] * 279 + [0] * 129, [1, 0])
    assert [smaller[i - 279] for i in order[1::2]] == mrpc[1::2] and mrpc[:4] == [1796, 3142, 1423, 54]

    idx_of_sentence = {row["sentence"]: row["idx"] for row in published(realdata, "sst")}
    labels = glue_labels("sst")
    order = from_the_end(labels, list(dict.fromkeys(reversed(labels))))
    sentiment = published(realdata, "sentiment_analysis")
    assert [labels[i] for i in order] == [int(row["label"]) for row in sentiment]
    assert all(idx_of_sentence.get(row["sentence"], i) == i for row, i in zip(sentiment, order, strict=True))
    assert len(idx_of_sentence) > 850

    dialogue = [row["answers"] for row in published(realdata, "dialogue")]
    places = from_the_end(sorted(dialogue), "BACD")
    assert [sorted(dialogue)[i] for i in places] == dialogue
    assert [row["answer"] for row in published(realdata, "mmlu")] == [0, 1, 2, 3] * 379


# ---- files

ROWS = [{"sentence": f"text {i} \u2028 ", "label": i % 2, "idx": 100 + i} for i in range(12)]


def write(folder, stem: str, suffix: str, rows) -> None:
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{stem}.parquet")
    else:
        text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (folder / f"{stem}{suffix}").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("stem", ["sst2", "sst"])
def test_files_of_each_kind(tmp_path, suffix, stem):
    write(tmp_path, stem, suffix, ROWS)
    assert load("sst", tmp_path) == [Example({"sentence": row["sentence"]}, row["label"], str(row["idx"])) for row in ROWS]


def test_data_folder(tmp_path):
    (tmp_path / "downstream").mkdir()
    write(tmp_path / "downstream", "sst2", ".jsonl", ROWS)
    assert len(load("sst", data_dir=tmp_path)) == 12


def test_four_options(tmp_path):
    rows = [{"question": "q", "subject": "s", "choices": list("wxyz"), "answer": 3}] * 11
    write(tmp_path, "mmlu", ".json", rows)
    assert load("mmlu", tmp_path)[0] == Example({"question": "q", "options": ("w", "x", "y", "z")}, 3, None)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda rows: rows[3].pop("label"), "sst2.json, row 3: the key 'label' is missing"),
    (lambda rows: rows[3].update(label=-1), "row 3: 'label' should be one of 0, 1, found -1"),
    (lambda rows: rows[3].update(label="1"), "row 3: 'label' should be an integer"),
    (lambda rows: rows[3].update(sentence=" "), "row 3: 'sentence' is empty"),
    (lambda rows: rows.__delitem__(slice(10, None)), "10 rows; the first 10 are few-shot examples"),
    (lambda rows: rows.clear(), "expected a list of records, found an empty list"),
])
def test_damaged_rows_are_named(tmp_path, spoil, message):
    rows = json.loads(json.dumps(ROWS))
    spoil(rows)
    write(tmp_path, "sst2", ".json", rows)
    with pytest.raises(UserError, match=message):
        load("sst", tmp_path)


def test_options_are_counted(tmp_path):
    write(tmp_path, "mmlu", ".json", [{"question": "q", "choices": list("wxy"), "answer": 0}] * 11)
    with pytest.raises(UserError, match="row 0: 'choices' should be 4 texts, found 3"):
        load("mmlu", tmp_path)


def test_damaged_files_are_named(tmp_path):
    write(tmp_path, "sst2", ".jsonl", ROWS)
    whole = (tmp_path / "sst2.jsonl").read_bytes()
    (tmp_path / "sst2.jsonl").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="sst2.jsonl, line 12: not valid JSON"):
        load("sst", tmp_path)
    (tmp_path / "cola.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="cola.parquet: not readable as parquet"):
        load("cola", tmp_path)


def test_folders_that_lack_something(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load("sst", tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no sst2.jsonl .* for task sst"):
        load("sst", tmp_path)


def test_pickles_stay_closed(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the pickle was opened",)
    import pickle
    (tmp_path / "sst2.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="sst2.pkl: pickles are not read.*sst2.jsonl"):
        load("sst", tmp_path)
    write(tmp_path, "sst2", ".jsonl", ROWS)
    assert len(load("sst", tmp_path)) == 12


# ---- the hub

def test_offline_says_where_to_put_a_file(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"glue .rte, validation. did not load.*rte.jsonl.*{tmp_path}/downstream") as caught:
        load("rte", data_dir=tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.jsonl"))


def test_what_the_hub_gives_is_kept(tmp_path, monkeypatch, caplog):
    import datasets
    source = [{"sentence": f"s{i} ", "label": label, "idx": i} for i, label in enumerate(glue_labels("sst"))]
    loaded = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: loaded.append((*args, options["split"])) or source)
    first = load("sst", data_dir=tmp_path)
    assert loaded == [("nyu-mll/glue", "sst2", "validation")] and first[0].id == "427" and not caplog.records
    assert load("sst", data_dir=tmp_path) == first and len(loaded) == 1

    shutil.rmtree(tmp_path / "downstream")
    del source[500:]
    load("sst", data_dir=tmp_path)
    assert "the published subset has 856" in caplog.text
    source[0].pop("label")
    with pytest.raises(UserError, match="task cola: .* did not load .*'label'"):
        load("cola", data_dir=tmp_path)


# ---- the built-in world

@pytest.mark.parametrize("name", TASKS)
def test_exercises_have_the_published_schemas(name):
    examples = load(name, "world")
    assert len(examples) == exercises.ROWS and load(name, "world") == examples
    labels = [example.label for example in examples]
    assert labels == (labels[:len(TASKS[name].labels)] * exercises.ROWS)[:exercises.ROWS]


def test_exercises_are_true_of_the_world():
    facts = {(fact.subject.en, fact.object.en) for fact in world.world().facts}

    def holds(sentence: str) -> bool:
        return any(sentence.endswith(f" {obj}.") and subject in sentence for subject, obj in facts)

    for name, entailed in (("rte", 0), ("nli", 1), ("mrpc", 1)):
        for example in load(name, "world")[:40]:
            assert holds(example.fields["sentence1"])
            assert holds(example.fields["sentence2"]) == (example.label == entailed)
    for example in load("mmlu", "world")[:40]:
        right = [option for option in example.fields["options"]
                 if any(obj == option and subject in example.fields["question"] for subject, obj in facts)]
        assert example.fields["options"][example.label] in right


def test_fingerprint_is_of_the_content():
    sst, cola = load("sst", "world"), load("cola", "world")
    assert downstream.fingerprint(sst) == downstream.fingerprint(load("sst", "world")) != downstream.fingerprint(cola)
    assert downstream.fingerprint(sst) != downstream.fingerprint(sst[::-1])
