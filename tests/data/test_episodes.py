"""Edit data as text: samplers, readers of the published formats, the built-in world's rows, batches."""
import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from common.errors import UserError
from data import episodes
from data.episodes import claims, export, locality, neighbours, opinions, qa
from data.episodes.options import DataOptions
from data.episodes.rephrase import questions_like
from data.episodes.sampler import MendSampler, Pool, SeracSampler
from data.episodes.splits import by_subject
from data.world import world

WORLD = ("gen", "fc", "qa", "fnli", "sent")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def kilt(**changes):
    return {"input": "Who made the Ulda clock?", "output": [{"provenance": []}, {"answer": "Ada"}], "prediction": "Ada",
            "alternatives": ["Bela", "Cleo"], "filtered_rephrases": ["Who built the Ulda clock?"], **changes}


# ---- samplers

def test_mends_batches_are_the_published_ones():
    sampler = MendSampler(Pool(10), 1, 2)
    assert [(sampler[i].edits, sampler[i].local) for i in range(3)] == [((4,), (5, 6)), ((6,), (9, 7)), ((2,), (6, 5))]


def test_seracs_batches_are_the_published_ones():
    sampler = SeracSampler(Pool(10), 3, 3)
    draws = [sampler[i] for i in range(2)]
    assert [sorted(draw.edits) for draw in draws] == [[2, 4, 6], [3, 5, 7]]
    assert [draw.local for draw in draws] == [(5, 7, 9), (8, 6, 4)]
    assert [draw.edits for draw in draws] == [(4, 6, 2), (7, 3, 5)]  # in the permutation's order


@pytest.mark.parametrize("kind", [MendSampler, SeracSampler])
def test_a_batch_depends_on_its_number_alone(kind):
    ahead, back = kind(Pool(17), 4, 3, seed=5), kind(Pool(17), 4, 3, seed=5)
    assert back[9] == [ahead[i] for i in range(10)][9]
    assert back[2] == ahead[2] and back[9] == ahead[9]
    assert kind(Pool(17), 4, 3, seed=6)[0] != ahead[0]


@pytest.mark.parametrize("kind", [MendSampler, SeracSampler])
def test_a_pass_edits_every_row_once_and_never_beside_itself(kind):
    sampler = kind(Pool(12), 3, 4, seed=1)
    draws = [sampler[i] for i in range(2 * len(sampler))]
    for epoch in (0, 1):
        assert sorted(row for draw in draws if draw.epoch == epoch for row in draw.edits) == list(range(12))
    assert all(not set(draw.edits) & set(draw.local) and len(draw.local) == 4 for draw in draws)


def test_local_examples_of_another_source_are_all_drawn():
    sampler = MendSampler(Pool(3, 40), 1, 5)
    assert {i for n in range(60) for i in sampler[n].local} == set(range(40))


def test_alike_keys_are_not_edited_together():
    keys = ["Ulda", "ulda bridge", "Varn", "Lorn", "Drava", "VARN"]
    sampler = SeracSampler(Pool(6), 2, 2, keys=keys)
    pairs = [sampler[i].edits for i in range(40)]
    assert not any({0, 1} == set(pair) or {2, 5} == set(pair) for pair in pairs)
    assert {row for pair in pairs for row in pair} == set(range(6))


def test_keep_probabilities_balance_the_classes():
    keep = [1.0] * 20 + [0.1] * 200
    sampler = SeracSampler(Pool(220), 1, 1, keep=keep)
    rare = [sampler[i].edits[0] < 20 for i in range(400)]
    assert 0.35 < sum(rare) / 400 < 0.65


@pytest.mark.parametrize("make, words", [
    (lambda: MendSampler(Pool(5), 1, 0), "at least 1 edit and 1 unrelated"),
    (lambda: MendSampler(Pool(3), 4, 1), "only 3 rows"),
    (lambda: MendSampler(Pool(2), 2, 1)[0], "all 2 unrelated examples belong"),
    (lambda: SeracSampler(Pool(2), 2, 1)[0], "all 2 unrelated examples belong"),
    (lambda: SeracSampler(Pool(3), 2, 1, keys=["a", "A", "a"])[0], "alike"),
])
def test_too_few_rows_for_a_batch(make, words):
    with pytest.raises(UserError, match=words):
        make()


# ---- the built-in world

@pytest.fixture(scope="module")
def invented():
    return {(experiment, split): episodes.load(experiment, split, "world") for experiment in WORLD for split in episodes.SPLITS}


def test_splits_share_no_subject(invented):
    facts = world().facts
    subjects = {split: {f.subject for f in by_subject(facts, lambda f: f.subject.en, split)} for split in episodes.SPLITS}
    assert sum(map(len, subjects.values())) == len({f.subject for f in facts})
    assert not subjects["train"] & subjects["validation"] and not subjects["train"] & subjects["test"]
    assert not subjects["validation"] & subjects["test"]
    for split in episodes.SPLITS:
        names = {s.en for s in subjects[split]}
        assert {row.subject for row in invented["qa", split].rows} == names
        assert {row.page for row in invented["fnli", split].rows} <= names
        assert {row.entity for row in invented["sent", split].rows} == names


def test_world_edits_are_right():
    """Old and new objects, answers and classes agree with the world's facts."""
    base = world()
    truth = {(f.subject.en, f.relation.id): f for f in base.facts}
    by_question = {}
    for f in base.facts:
        for phrasing in f.relation.questions("en"):
            by_question[phrasing.replace("{}", f.subject.en)] = f
    data = episodes.load("qa", "test", "world")
    for row in data.rows:
        fact = by_question[row.question]
        assert row.answer == fact.object.en == row.prediction
        assert row.answer not in row.alternatives and len(set(row.alternatives)) == len(row.alternatives) > 0
        assert set(row.alternatives) <= {o.en for o in base.objects[fact.relation.id]}
        assert row.implied[0][1] == fact.subject.en and row.answer in row.implied[0][0] and row.answer in row.yes_no
    sentences = {f"{p.replace('{}', f.subject.en)} {f.object.en}." for f in base.facts for p in f.relation.statements("en")}
    data = episodes.load("fc", "test", "world")
    assert 0.4 < np.mean([row.answer == "SUPPORTS" for row in data.rows]) < 0.6
    for row in data.rows:
        assert {text in sentences for text in (row.claim, *row.rephrases)} == {row.answer == "SUPPORTS"}
    for row in episodes.load("gen", "test", "world").rows:
        assert {f"{prompt}{row.old}." in sentences for prompt in (row.prompt, *row.rephrases)} == {True}
        assert f"{row.prompt}{row.new}." not in sentences
    rows = episodes.load("fnli", "test", "world").rows
    for row in rows:
        assert len(row.evidence.split(" ")) > claims.SHORTEST_EVIDENCE
        assert (row.claim in sentences) == (row.label != 1)  # the evidence is not true, so neither is what it supports
    assert len(truth) == len(base.facts)
    assert set(Counter(row.label for row in rows)) == {1, 0, None}


@pytest.mark.parametrize("experiment", WORLD)
@pytest.mark.parametrize("recipe", ["mend", "serac"])
def test_batches_repeat_and_differ_by_seed(experiment, recipe):
    first, again, other = (episodes.load(experiment, "validation", "world", {"facts": 600}, seed, recipe=recipe).batches(2, 2)
                           for seed in (0, 0, 1))
    assert [first[i] for i in (0, 5, 2)] == [again[i] for i in (0, 5, 2)]
    assert [first[i] for i in range(4)] != [other[i] for i in range(4)]


def test_unrelated_facts_of_the_same_relation():
    """Of other subjects with the same object where there are some, as often as asked, and the others as drawn without."""
    plain, mixed, all_ = (episodes.load("gen", "train", "world", {"same_relation": p}).batches(2, 4) for p in (0, 0.5, 1))
    rows = mixed._data.rows
    facts = {f"{prompt}{row.old}": (row.relation, i) for i, row in enumerate(rows) for prompt in (row.prompt, *row.rephrases)}
    count = 0
    for number in range(60):
        batch = mixed[number]
        assert batch.items == plain[number].items == all_[number].items
        edited = [rows[batch.items[place % 2].index] for place in range(4)]
        for place, (example, usual, near) in enumerate(zip(batch.local, plain[number].local, all_[number].local)):
            relation, index = facts[near.input + near.target]
            assert relation == edited[place].relation and index not in batch.indices
            others = [row for i, row in enumerate(rows) if row.relation == relation and row.old == edited[place].old]
            assert (rows[index].old == edited[place].old) == (len(others) > 1)
            assert example in (usual, near)
            count += example == near
    assert 90 < count < 160
    assert mixed[3] == episodes.load("gen", "train", "world", {"same_relation": 0.5}).batches(2, 4)[3]
    assert {"same_relation": 0.5} == mixed._data.about["options"] and plain._data.about["options"] == {}
    for experiment, source, p, message in (
        ("qa", "world", 0.5, "is for gen"), ("gen", "files", 0.5, "is for gen"), ("gen", "world", 2, "a probability"),
    ):
        with pytest.raises(UserError, match=message):
            episodes.load(experiment, "train", source, {"same_relation": p})


def test_prompts_behind_a_sentence_of_another_fact():
    """As often as asked; the edit itself, targets and draws stay as they are without."""
    plain, mixed = (episodes.load("gen", "train", "world", {"preceded": p}) for p in (0, 0.5))
    sentences = {f"{row.prompt}{row.old}. " for row in plain.rows}
    count = 0
    for index in range(200):
        before, after = plain.item(index, 0), mixed.item(index, 0)
        assert before.edit == after.edit
        pairs = [(before.outer[0], after.outer[0]), (plain.as_local(index, 0), mixed.as_local(index, 0))]
        for usual, behind in pairs:
            start = behind.input.removesuffix(usual.input)
            assert behind.target == usual.target and (start in sentences or not start)
            count += bool(start)
    assert 160 < count < 240
    with pytest.raises(UserError, match="data.preceded is for gen"):
        episodes.load("qa", "train", "world", {"preceded": 0.5})


def test_facts_that_are_asked():
    """As often as ``data.asked`` says, edits, equivalents and unrelated prompts are questions about the same fact."""
    plain, mixed = (episodes.load("gen", "train", "world", {"asked": p}) for p in (0, 0.5))
    questions = {"edit": 0, "outer": 0, "local": 0}
    for index in range(200):
        row, item, local = mixed.rows[index], mixed.item(index, 0), mixed.as_local(index, 0)
        assert {item.edit.target, item.outer[0].target} == {row.new} and local.target == row.old
        assert item.edit.input in (row.prompt, row.questions[0])
        for kind, text in (("edit", item.edit.input), ("outer", item.outer[0].input), ("local", local.input)):
            assert text in (row.prompt, *row.rephrases, *row.questions)
            questions[kind] += text in row.questions
        assert not any(text in row.questions for text in (plain.item(index, 0).edit.input, plain.item(index, 0).outer[0].input))
    assert all(70 < count < 130 for count in questions.values()), questions
    digests = [data.about["sha256"] for data in (plain, mixed)]
    for data in (plain, mixed):
        data.rows = [dataclasses.replace(row, questions=("Really?",)) for row in data.rows]
        del data.about
    assert [data.about["sha256"] == digest for data, digest in zip((plain, mixed), digests)] == [True, False]
    with pytest.raises(UserError, match="data.asked is for gen"):
        episodes.load("qa", "train", "world", {"asked": 0.5})


def test_claims_flip_half_of_the_time(invented):
    data = invented["fc", "train"]
    items = [data.item(i, 0) for i in range(600)]
    assert 0.42 < np.mean([item.flip for item in items]) < 0.58
    for item in items:
        row = data.rows[item.index]
        answer = row.alternative if item.flip else row.prediction
        assert item.edit.label == item.outer[0].label == claims.class_of(answer)
        assert item.condition == f"{row.prediction} >> {answer} || {row.claim}"


def test_without_rephrase_the_equivalent_is_the_edit():
    for experiment in ("gen", "fc", "qa"):
        data = episodes.load(experiment, "validation", "world", {"rephrase": False})
        assert all(data.item(i, 0).outer == (data.item(i, 0).edit,) for i in range(5))
        data = episodes.load(experiment, "validation", "world")
        assert all(data.item(i, 0).outer[0].input != data.item(i, 0).edit.input for i in range(5))


def test_seracs_questions_take_all_kinds_of_equivalents_evenly():
    data = episodes.load("qa", "train", "world", {"zsre_impl": True, "zsre_yn": True}, recipe="serac")
    kinds = Counter()
    for index in range(len(data)):
        row, item = data.rows[index], data.item(index, 0)
        (outer,), new = item.outer, item.edit.target
        if outer.target in ("True", "False"):
            kind = "yes_no"
            assert (new in outer.input) == (outer.target == "True") and item.hard == (True,)
            assert any(mark.lower() in outer.input.lower() for mark in qa.TRUE_OR_FALSE)
        elif outer.target == row.subject:
            kind = "implied"
            assert outer.input == qa.replaced(row.implied[0][0], row.answer, new) and item.hard == (True,)
        else:
            kind = "question" if outer.input == row.question else "rephrase"
            assert outer.target == new and item.hard == (False,)
        kinds[kind] += 1
    assert set(kinds) == {"question", "rephrase", "implied", "yes_no"}
    assert all(0.2 < count / len(data) < 0.3 for count in kinds.values())


def test_unrelated_questions_never_belong_to_the_edits():
    data = episodes.load("qa", "validation", "world", {"zsre_impl": True, "zsre_yn": True, "hard_neg": True}, recipe="serac")
    hard = 0
    batches = data.batches(8, 8)
    for batch in batches:
        hard += batch.local_hard[0]
        edited = [data.rows[i] for i in batch.indices]
        edited_texts = {row.question for row in edited} | {text for row in edited for text in row.rephrases}
        assert not edited_texts & {example.input for example in batch.local}
    assert 0.2 < hard / len(batches) < 0.8
    assert Counter(example.target in ("True", "False") for example in data._local)[True] == len(data) // 4


def test_hard_negatives_are_more_alike():
    data = episodes.load("qa", "validation", "world", {"hard_neg": True, "hard_neg_prob": 1.0}, recipe="serac")
    batch = data.batches(8, 8)[0]
    assert all(batch.local_hard)
    shared = [len(set(item.edit.input.split()) & set(local.input.split())) for item, local in zip(batch.items, batch.local)]
    easy = episodes.load("qa", "validation", "world", recipe="serac").batches(8, 8)[0]
    assert sum(shared) > sum(len(set(item.edit.input.split()) & set(local.input.split()))
                             for item, local in zip(easy.items, easy.local))


def test_evidence_decides_its_claims_and_leaves_hard_negatives(invented):
    data = episodes.load("fnli", "train", "world", recipe="serac")
    batches = data.batches(6, 6)
    label_counts = Counter()
    for number in range(60):
        batch = batches[number]
        pages = [data.rows[i].page.casefold() for i in batch.indices]
        assert len(set(pages)) == 6
        for item, local in zip(batch.items, batch.local):
            row = data.rows[item.index]
            label_counts[row.label] += 1
            assert item.edit.label == 1 and [o.label for o in item.outer] == ([] if row.label is None else [row.label])
            assert local.label is None and (local.input == row.claim) == (row.label is None)
    assert min(label_counts.values()) > 0.8 * max(label_counts.values()) and set(label_counts) == {0, 1, None}


@pytest.mark.parametrize("experiment", WORLD)
@pytest.mark.parametrize("recipe", ["mend", "serac"])
def test_a_batch_has_the_sizes_asked_for(experiment, recipe):
    for n_edits, n_local in ((1, 4), (3, 2)):
        batch = episodes.load(experiment, "test", "world", recipe=recipe).batches(n_edits, n_local)[3]
        assert (len(batch.items), len(batch.local), len(batch.local_hard)) == (n_edits, n_local, n_local)


def test_opinions_come_with_both_sentiments():
    data = episodes.load("sent", "test", "world", recipe="serac")
    signs = Counter()
    for index in range(len(data)):
        item, row = data.item(index, 0), data.rows[index]
        signs[item.sentiment] += 1
        assert item.edit == opinions.edit_of(row.entity, item.sentiment)
        assert [o.target for o in item.outer] == [*row.positive, *row.negative]
        assert item.outer_sentiments == (1,) * len(row.positive) + (-1,) * len(row.negative)
        assert all(o.input in {p.format(row.entity) for p in opinions.PROMPTS} for o in item.outer)
    assert min(signs.values()) > 30
    assert "Topic" not in data.local(0, 0).input
    published = episodes.load("sent", "test", "world", {"sent_loc": "descriptor"}, recipe="serac")
    assert published.local(0, 0).input == f"Topic: {published.rows[0].entity}"


def test_at_most_so_many_equivalents_and_flipped_ones():
    data = episodes.load("sent", "test", "world", {"n_outer_max": 11}, recipe="serac")
    batch = data.batches(2, 2)[0]
    assert [len(item.outer) for item in batch.items] == [8, 3] == [len(item.outer_sentiments) for item in batch.items]
    plain = episodes.load("qa", "test", "world", recipe="serac").batches(1, 1)
    flipped = episodes.load("qa", "test", "world", {"flip_inner_outer": True}, recipe="serac").batches(1, 1)
    turned = 0
    for number in range(60):
        a, b = plain[number].items[0], flipped[number].items[0]
        if a != b:
            turned += 1
            assert (b.edit, b.outer) == (a.outer[0], (a.edit,))
    assert 15 < turned < 45


def test_catalan_where_there_are_sentences():
    assert "?" in episodes.load("qa", "test", "world", {"language": "ca"}).item(0, 0).edit.input
    assert episodes.load("gen", "test", "world", {"language": "ca"}).item(0, 0).edit.target.startswith(" ")
    with pytest.raises(UserError, match="English only"):
        episodes.load("sent", "test", "world", {"language": "ca"})


# ---- the published formats

def test_every_format_is_written_and_read_back(tmp_path):
    folders = {"qa": "zsre", "fc": "fever", "fnli": "vitaminc", "sent": "sentiment"}
    for experiment, folder in folders.items():
        assert all(path.is_file() and count for path, count in export.world(experiment, tmp_path / folder, 400))
        options = {"zsre_impl": True, "zsre_yn": True, "zsre_nq": False} if experiment == "qa" else {}
        for split in episodes.SPLITS:
            read = episodes.load(experiment, split, "files", options, data_dir=tmp_path, recipe="serac")
            direct = episodes.load(experiment, split, "world", options | {"facts": 400}, recipe="serac")
            assert len(read) == len(direct)
            if experiment == "qa":
                assert read.item(3, 0) == direct.item(3, 0) and read.local(2, 0) == direct.local(2, 0)
            read.batches(2, 2)[0]


def test_rows_without_answer_alternatives_or_other_rephrases_are_left_out(tmp_path):
    path = lines(tmp_path / "train.jsonl", [
        kilt(), kilt(output=[{"provenance": []}]), kilt(alternatives=[]), kilt(filtered_rephrases=[]),
        kilt(filtered_rephrases=["Who made the Ulda clock?"]), kilt(input="What sex is Ada?"), kilt(input="And?")])
    rows = qa.read(path)
    assert [row.number for row in rows] == [0, 5, 6] and rows[0].answer == "Ada"
    (tmp_path / "rows.txt").write_text("6\n0\n\n")
    assert [row.number for row in qa.read(path, str(tmp_path / "rows.txt"))] == [0, 6]
    options = {"zsre_path": str(tmp_path / "{}.jsonl"), "zsre_nq": False}
    assert len(episodes.load("qa", "train", "files", options)) == 3
    assert len(episodes.load("qa", "train", "files", options, recipe="serac")) == 2


def test_implied_and_yes_or_no_questions_are_aligned_with_all_rows(tmp_path):
    path = lines(tmp_path / "q.jsonl", [kilt(alternatives=[]), kilt(), kilt(), kilt()])
    (tmp_path / "impl.json").write_text(json.dumps([[], [["What did Ada make?", "clocks", 1], ["What did ada do?", "y"]], []]))
    (tmp_path / "yn.txt").write_text("first Ada\n\nIs it - ADA - who made it?\nIs it Bela?\n")
    rows = qa.with_yes_no(qa.with_implied(qa.read(path), tmp_path / "impl.json"), tmp_path / "yn.txt")
    assert [row.implied for row in rows] == [(("What did Ada make?", "clocks"),), (), ()]
    assert [row.yes_no for row in rows] == ["", "Is it - ADA - who made it?", ""]
    import random
    example = next(e for e in (qa.yes_no_question(rows[1], "Bela", random.Random(i)) for i in range(9)) if e.target == "False")
    assert "Cleo-who" in example.input


def test_generation_edits(tmp_path):
    content = {"n_tokens": 3, "original": ["a", "b"], "completions": ["a b c d", "e f g h"]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    text = tmp_path / "passages.txt"
    text.write_text("\n".join([*(f"{i} " + "word " * 60 for i in range(10)), "short", "é " * 60]))
    options = {"path": str(tmp_path), "wiki_webtext": False, "wikitext_path": str(text)}
    data = episodes.load("gen", "train", "files", options)
    item = data.item(1, 0)
    assert (item.edit, item.outer) == (episodes.Example("e f g h", scored=3), (item.edit,)) and 0 <= item.drop < 1
    assert data.n_local == 10 and all(len(data.local(i, 0).input.split()) == 61 for i in range(10))
    assert data.batches(1, 2)[0].local[0].scored is None
    assert episodes.load("gen", "train", "files", options | {"rephrase": False}).item(1, 0).drop is None
    webtext = options | {"wiki_webtext": True, "webtext_path": str(text)}
    assert episodes.load("gen", "train", "files", webtext).n_local == 10  # 90 % of the 12, unfiltered
    parts = [{e.input for e in locality.passages(split, DataOptions.of(webtext))} for split in episodes.SPLITS]
    assert [len(part) for part in parts] == [10, 1, 1] and len(set.union(*parts)) == 12


def test_natural_questions_are_for_validation_unless_asked(tmp_path):
    for name in ("train", "dev"):
        lines(tmp_path / f"{name}.jsonl", [kilt(), kilt(input="Two?")])
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"questions": [f"{name}?"], "answers": ["yes"]}))
    options = {"zsre_path": str(tmp_path / "{}.jsonl"), "nq_path": str(tmp_path)}
    local = {(split, train): episodes.load("qa", split, "files", options | {"zsre_nq_train": train}).local(0, 0).input
             for split in ("train", "validation") for train in (False, True)}
    assert local == {("train", False): "Who made the Ulda clock?", ("train", True): "train?",
                     ("validation", False): "validation?", ("validation", True): "validation?"}
    with pytest.raises(UserError, match="make_episodes nq"):
        episodes.load("qa", "validation", "files", options | {"nq_path": str(tmp_path / "none")})


@pytest.mark.parametrize("experiment, content, words", [
    ("qa", "", "empty"), ("qa", '{"input": "x"', "line 1: not valid JSON"), ("qa", "[]", "has an answer"),
    ("qa", json.dumps(kilt(alternatives="x")), "'alternatives' should be a list"), ("qa", "7\n", "expected an object"),
    ("qa", json.dumps(kilt(alternatives=[])), "none of its 1 rows"),
    ("fc", json.dumps(kilt()), "'logit' is missing"),
    ("fnli", json.dumps({"claim": "a", "evidence": "b", "label": "MAYBE"}), "one of"),
    ("fnli", json.dumps({"claim": "a", "evidence": "b c", "label": "refutes", "id": "1_2"}), "more than 10 words"),
    ("sent", '[{"ent": "Ulda", "pos": [], "neg": ["Bad."]}]', "no entity"), ("sent", '[{"pos": []}]', "'ent' is missing"),
    ("gen", '{"n_tokens": 0, "completions": ["a"]}', "at least 1"),
    ("gen", '{"n_tokens": 2, "completions": []}', "no completions"),
    ("gen", '{"n_tokens": 2, "completions": ["a"], "original": ["a", "b"]}', "2 texts and 'completions' 1"),
    ("gen", '{"completions": ["a"]}', "'n_tokens' is missing"),
])
def test_malformed_files_end_in_one_line(tmp_path, experiment, content, words):
    path = tmp_path / "train.json"
    path.write_text(content)
    key = {"qa": "zsre_path", "fc": "fever_path", "fnli": "vitaminc_path", "sent": "sentiment_path"}.get(experiment)
    options = {key: str(path)} if key else {"path": str(tmp_path), "wiki_webtext": False}
    with pytest.raises(UserError, match=words) as error:
        episodes.load(experiment, "train", "files", options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("call, words", [
    (lambda: episodes.load("zrse", "train", "world"), "did you mean 'zsre'"),
    (lambda: episodes.load("qa", "dev", "world"), "the splits are train"),
    (lambda: episodes.load("qa", "train", "web"), '"files" or "world"'),
    (lambda: episodes.load("qa", "train", "world", recipe="rome"), "mend or serac"),
    (lambda: episodes.load("qa", "train", "world", {"zsre_nqq": True}), "did you mean data.zsre_nq"),
    (lambda: episodes.load("qa", "train", "world", {"hard_neg": "yes"}), "should be bool"),
    (lambda: episodes.load("sent", "train", "world", {"sent_loc": "x"}), "descriptor"),
    (lambda: episodes.load("qa", "train", "world", {"facts": 1}), "ask for more"),
    (lambda: episodes.load("fc", "train", "files"), "expected JSON lines with input"),
    (lambda: episodes.load("fnli", "train", "files"), "train.jsonl is not in .*download it elsewhere"),
    (lambda: episodes.load("qa", "test", "world", {"hard_neg": True, "hard_neg_exclude": 9000}, recipe="serac"), "leaves none"),
    (lambda: episodes.load("qa", "test", "world", {"hard_neg": True, "hard_neg_encoder": "no/such"}, recipe="serac"),
     "did not load"),
])
def test_bad_requests_end_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_dead_keys_are_accepted_with_a_warning(caplog):
    assert DataOptions.of({"sent_eval_sample": True}) == DataOptions()
    assert "no effect" in caplog.text


# ---- real samples

def test_real_zsre_rows(realdata):
    options = {"zsre_path": str(realdata / "zsre_1000.json")}
    data = {split: episodes.load("qa", split, "files", options) for split in episodes.SPLITS}
    subjects = [{row.subject for row in data[split].rows} for split in episodes.SPLITS]
    assert 900 < sum(map(len, data.values())) <= 1000
    assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2] and not subjects[1] & subjects[2]
    batch = data["validation"].batches(1, 4)[0]
    item = batch.items[0]
    row = data["validation"].rows[item.index]
    assert item.condition == f"{row.prediction} >> {row.alternatives[0]} || {row.question}"
    assert all(local.input.endswith("?") and local.target for local in batch.local)  # Natural Questions, brought by the rows


def test_real_vitaminc_claims(realdata):
    options = {"vitaminc_path": str(realdata / "claims" / "vitaminc_{}.jsonl")}
    data = episodes.load("fnli", "train", "files", options, recipe="serac")
    raw = [json.loads(line) for line in (realdata / "claims" / "vitaminc_train.jsonl").read_text().splitlines()]
    usable = [row for row in raw if len(row["evidence"].split(" ")) > 10]
    assert 100 < len(data) == len(usable)
    by_claim = {row["claim"]: row["label"].upper() for row in usable}
    assert all(claims.LABELS[by_claim[row.claim]] == row.label for row in data.rows)
    assert len(data.batches(10, 10)[0].local) == 10


def test_real_wikitext_paragraphs(realdata, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"n_tokens": 2, "completions": ["a b c d"]}))
    options = {"path": str(tmp_path), "wiki_webtext": False, "wikitext_path": str(realdata / "wikitext2" / "valid.txt")}
    data = episodes.load("gen", "train", "files", options)
    texts = [data.local(i, 0).input for i in range(data.n_local)]
    assert len(texts) > 500 and all(text.isascii() and len(text.split(" ")) >= 50 for text in texts)
    assert not set(texts) & {e.input for e in locality.passages("validation", DataOptions.of(options))}


# ---- rephrasings and neighbours

@pytest.mark.parametrize("question, form", [
    ("What is the job of Ada?", "What's the job of Ada?"), ("Which sport does Ada play?", "What sport does Ada play?")])
def test_template_rephrasings(question, form):
    forms = questions_like(question)
    assert form in forms and question not in forms and len(set(forms)) == len(forms)
    assert all(question[6:] in text for text in forms)


def test_nearest_by_words():
    nearest = neighbours.nearest(["red fox", "blue sea"], ["a red fox", "the red fox ran", "blue sea", "green hill"],
                               neighbours.encoder("words"), DataOptions(hard_neg_neighbors=2), 0, [0, None, None, None])
    assert [list(row) for row in nearest.indices][0][0] == 1 and nearest.indices[1][0] == 2
    assert all(np.isclose(sum(p), 1) for p in nearest.probabilities)
    assert nearest.probabilities[1][0] > nearest.probabilities[1][1]


def test_pages_that_are_parts_of_each_other(tmp_path):
    """No claim is unrelated to a page whose name is in all others: said at once, where drawing would never end."""
    row = {"evidence": "word " * 12, "label": "SUPPORTS", "revision_type": "real"}

    def load(*pages):
        lines(tmp_path / "test.jsonl", [{**row, "claim": f"Of {page}.", "page": page} for page in pages])
        return episodes.load("fnli", "test", "files", {"vitaminc_path": str(tmp_path / "{}.jsonl")}, recipe="serac")

    data = load("Ann", "Anna Keller", "Bo")
    others = [i for i in range(3) if data.rows[i].page != "Bo"]
    assert {data.paired_local(i, epoch).input for i in others for epoch in range(9)} == {"Of Bo."}
    with pytest.raises(UserError, match="every page's name contains 'ann' or is a part of it") as error:
        load("Ann", "Anna Keller", "ann b")
    assert "\n" not in str(error.value)


def test_what_several_edits_imply_is_asked_of_none():
    """Nor is an unrelated question what an edit implies."""
    data = episodes.load("qa", "test", "world", {"zsre_impl": True, "zsre_yn": True}, recipe="serac")
    batch = data.batches(150, 150)[0]
    implied = Counter(qa.replaced(question, data.rows[item.index].answer, item.edit.target)
                      for item in batch.items for question, _ in data.rows[item.index].implied)
    implied_items = [item for item in batch.items if item.outer[0].input in implied]
    assert any(count > 1 for count in implied.values()) and implied_items
    assert all(implied[item.outer[0].input] == 1 and item.hard == (True,) for item in implied_items)
    # A rephrase takes the place of the others.
    drawn = {index: data.item(index, batch.epoch) for index in batch.indices}
    changed = [item for item in batch.items if item != drawn[item.index]]
    assert changed and all(item.outer[0].input in data.rows[item.index].rephrases and item.outer[0].target == item.edit.target
                           and drawn[item.index].outer[0].input in implied for item in changed)
    assert not any(example.input in implied for example in batch.local)
    answers = {row.question: row.answer for row in data.rows}
    assert all(answers[example.input] == example.target for example in batch.local if example.input in answers)
    # What is asked of a few edits is what it was.
    single = data.batches(1, 1)
    assert [single[i].items[0] for i in range(20)] == [data.item(single[i].indices[0], single[i].epoch) for i in range(20)]


def test_hard_negatives_of_many_edits():
    """Neighbours that are edited themselves are left out; an edit draws among its others."""
    near = neighbours.Neighbours([[1, 2, 6], [0, 2, 7], [0, 1, 6], [0, 1, 7], [0, 1, 6], [0, 1, 7]], [[0.6, 0.3, 0.1]] * 6, 1.0)
    sampler = SeracSampler(Pool(6, 8, range(8)), 6, 6, neighbours=near)
    draws = [sampler[i] for i in range(4)]
    allowed = {(row, near.indices[row][2]) for row in range(6)}
    assert all(draw.hard and set(zip(draw.edits, draw.local)) == allowed
               for draw in draws)
