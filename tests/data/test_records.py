"""CounterFact, zsRE and known facts: what is read is what the file says, and what is wrong with a file is said in a line."""

import copy
import json
import pickle
from collections import Counter

import pytest

from common.errors import UserError
from data import Prompt, Target, counterfact, download, zsre
import data

CF = {
    "case_id": 7,
    "pararel_idx": 3,
    "requested_rewrite": {
        "prompt": "{} plays the sport of", "relation_id": "P641", "subject": "Ada Lind",
        "target_new": {"str": "golf", "id": "Q1"}, "target_true": {"str": "chess", "id": "Q2"},
    },
    "paraphrase_prompts": ["Today Ada Lind plays"],
    "neighborhood_prompts": ["Bo Holt plays the sport of", "Cy Park plays the sport of"],
    "attribute_prompts": ["Di Moss plays the sport of"],
    "generation_prompts": ["Ada Lind is known for"],
}
ZSRE = {
    "subject": "Ada Lind", "src": "Where does Ada Lind live?", "pred": "Rome", "rephrase": "Ada Lind's home is where?",
    "alt": "Oslo", "answers": ["Oslo", "Oslo, Norway"], "loc": "nq question: who rules the sea", "loc_ans": "the old king",
    "cond": "Rome >> Oslo || Where does Ada Lind live?",
}


def write(folder, *records):
    path = folder / "own.json"
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path


def changed(record, **changes):
    """A copy of the record; ``a__b=x`` sets record["a"]["b"], the value ``...`` removes the key."""
    record = copy.deepcopy(record)
    for name, value in changes.items():
        *outer, key = name.split("__")
        place = record
        for step in outer:
            place = place[step]
        if value is ...:
            del place[key]
        else:
            place[key] = value
    return record


def test_a_counterfact_record_keeps_every_field(tmp_path):
    (record,) = data.load(write(tmp_path, {**CF, "two_hop": ["?"]}))
    assert (record.case_id, record.subject, record.relation_id) == (7, "Ada Lind", "P641")
    assert record.prompt == "{} plays the sport of"
    assert (record.target_new, record.target_true) == (Target("golf", "Q1"), Target("chess", "Q2"))
    assert record.paraphrase_prompts == ("Today Ada Lind plays",)
    assert record.neighborhood_prompts == ("Bo Holt plays the sport of", "Cy Park plays the sport of")
    assert record.attribute_prompts == ("Di Moss plays the sport of",)
    assert record.generation_prompts == ("Ada Lind is known for",)
    assert record.schema == "counterfact" and record.extra == {"pararel_idx": 3, "two_hop": ["?"]}
    # The published evaluation hands over exactly this, and writes it to the case files without the id.
    assert record.request() == {"case_id": 7, **CF["requested_rewrite"]}
    assert record.requested_rewrite() == CF["requested_rewrite"]
    assert pickle.loads(pickle.dumps(record)) == record and len({record, record}) == 1
    with pytest.raises(AttributeError):
        record.subject = "Bo"


def test_what_a_file_of_ones_own_may_lack(tmp_path):
    bare = changed(CF, attribute_prompts=..., generation_prompts=..., pararel_idx=..., requested_rewrite__relation_id=...,
                   requested_rewrite__target_new={"str": " golf"}, requested_rewrite__target_true=..., case_id=...,
                   paraphrase_prompts=..., neighborhood_prompts=...)
    (record,) = data.load(write(tmp_path, bare))
    assert record.attribute_prompts == record.generation_prompts == ()
    assert record.paraphrase_prompts == record.neighborhood_prompts == () and record.target_true is None and record.case_id == 0
    assert "relation_id" not in record.request() and record.request()["target_new"] == {"str": " golf"}
    (record,) = data.load(write(tmp_path, changed(ZSRE, rephrase=..., loc=..., loc_ans=...)))
    assert record.paraphrase_prompts == zsre.locality(record) == ()


@pytest.mark.parametrize("changes, complaint", [
    (dict(case_id=...), "the key 'case_id' is missing"),
    (dict(case_id="7"), "'case_id' should be an integer, found the string '7'"),
    (dict(case_id=True), "'case_id' should be an integer, found True"),
    (dict(requested_rewrite=[]), "'requested_rewrite' should be an object, found a list"),
    (dict(requested_rewrite__subject=...), "'requested_rewrite': the key 'subject' is missing"),
    (dict(requested_rewrite__subject=" "), "'requested_rewrite': 'subject' is empty"),
    (dict(requested_rewrite__prompt="she plays"), "'prompt' needs exactly one {} for the subject, found 0: 'she plays'"),
    (dict(requested_rewrite__prompt="{} or {}"), "found 2"),
    (dict(requested_rewrite__prompt="{} {x}"), "has a brace besides its {}"),
    (dict(requested_rewrite__target_new={"str": ""}), "'target_new': 'str' is empty"),
    (dict(requested_rewrite__target_true={}), "'target_true': the key 'str' is missing"),
    (dict(paraphrase_prompts="one"), "'paraphrase_prompts' should be a list of strings, found the string 'one'"),
    (dict(neighborhood_prompts=["a", 3]), "'neighborhood_prompts' has 3 at place 1, expected a string"),
    (dict(neighborhood_prompts=["a", ""]), "'neighborhood_prompts' has an empty string at place 1"),
])
def test_a_wrong_counterfact_record_is_named(tmp_path, changes, complaint):
    path = write(tmp_path, CF, changed(CF, **{"case_id": 8, **changes}))
    with pytest.raises(UserError) as error:
        data.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}, record 1") and complaint in message and "\n" not in message
    assert len(data.load(path, limit=1)) == 1  # what is not asked for is not read


@pytest.mark.parametrize("changes, complaint", [
    (dict(src=...), "the key 'src' is missing"),
    (dict(subject=""), "'subject' is empty"),
    (dict(answers=[]), "'answers' has no first answer"),
    (dict(answers=["", "x"]), "'answers' has no first answer"),
    (dict(answers="Oslo"), "'answers' should be a list"),
    (dict(rephrase=3), "'rephrase' should be a string, found 3"),
    (dict(loc="who rules"), "'loc' should contain 'nq question: '"),
    (dict(loc_ans=...), "the key 'loc_ans' is missing"),
])
def test_a_wrong_zsre_record_is_named(tmp_path, changes, complaint):
    path = write(tmp_path, ZSRE, changed(ZSRE, **changes))
    with pytest.raises(UserError, match="record 1") as error:
        data.load(path)
    assert complaint in str(error.value)


def test_two_records_of_one_case_id(tmp_path):
    with pytest.raises(UserError, match="record 2: its case_id 7 is that of record 0"):
        data.load(write(tmp_path, CF, changed(CF, case_id=8), CF))


def test_zsre_is_transformed_as_published(golden, tiny_gpt2):
    _, tok = tiny_gpt2
    expected = json.loads((golden / "metrics_tiny-gpt2.json").read_text(encoding="utf-8"))["zsre_dataset"]
    records = data.load(golden / "zsre_mend_eval.json", tok=tok)
    ours = [{
        "case_id": r.case_id,
        "requested_rewrite": r.requested_rewrite(),
        "paraphrase_prompts": list(r.paraphrase_prompts),
        "neighborhood_prompts": [{"prompt": p.prompt, "target": p.target} for p in r.neighborhood_prompts],
        "attribute_prompts": list(r.attribute_prompts),
        "generation_prompts": list(r.generation_prompts),
    } for r in records]
    assert ours == expected
    without = data.load(golden / "zsre_mend_eval.json")
    assert [r.neighborhood_prompts for r in without] == [()] * 6
    assert zsre.with_locality(without, tok) == records


@pytest.mark.parametrize("question, subject, template", [
    ("Where is Ma?", "Ma", "Where is {}?"),
    ("Is Mali the home of Ma?", "Ma", "Is Mali the home of {}?"),
    ("Did Ma know that Ma won?", "Ma", "Did {} know that Ma won?"),
    ("Who made U.S. tea of the U.S.?", "U.S.", "Who made {} tea of the U.S.?"),
    ("Is Malian food good?", "Ma", "Is {}lian food good?"),
    ("Where is Mo?", "Ma", None),
    ("What does {} mean to Ma?", "Ma", None),
    ("What does } mean to Ma?", "Ma", None),
])
def test_the_subjects_place_in_a_question(question, subject, template):
    assert zsre.template_of(question, subject) == template
    if template is not None:
        assert template.format(subject) == question


def test_questions_without_their_subject_are_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path, ZSRE, changed(ZSRE, subject="Bo"), changed(ZSRE, src="Ada Lind {}?"), changed(ZSRE, alt="x"))
    records = data.load(path)
    assert [r.case_id for r in records] == [0, 3]  # the position in the file, as published
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: left out 2 records whose question does not contain the subject, or has braces (the first is record 1)"]
    assert data.load(path, limit=2) == records  # the limit counts what is left after the transformation
    with pytest.raises(UserError, match="none of its 1 records can be used"):
        data.load(write(tmp_path, changed(ZSRE, subject="Bo")))


@pytest.fixture(scope="module")
def bos_tokenizer(tmp_path_factory):
    """A SentencePiece-like tokenizer: word boundaries are "▁", one is put in front, decoding strips it; adds a bos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz?:", "▁the", "▁old"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("o", "l"), ("ol", "d"), ("▁", "old")]
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def test_a_locality_answer_stays_whole_where_text_does_not_come_back(bos_tokenizer):
    (record,) = zsre.parse([ZSRE], "x")
    assert bos_tokenizer("the")["input_ids"][0] == bos_tokenizer.bos_token_id
    prompts = zsre.locality_prompts(record, bos_tokenizer)
    assert prompts == (Prompt("nq question: who rules the sea?", "the old king"),)


def test_a_file_of_neither_schema(tmp_path):
    with pytest.raises(UserError, match="neither CounterFact's schema.* nor zsRE's.*its first record has the keys text, label"):
        data.load(write(tmp_path, {"text": "a", "label": 1}))
    with pytest.raises(UserError, match="its first record is 3, not an object"):
        data.load(write(tmp_path, 3))
    with pytest.raises(UserError, match="record 1: the key 'requested_rewrite' is missing"):
        data.load(write(tmp_path, CF, ZSRE))


@pytest.mark.parametrize("content, complaint", [
    ("", "not valid JSON"), ('[{"case_id": 1, "requested', "cut off or damaged"), ("[]", "found an empty list"),
    ('{"a": 1}', "found a JSON dict"), (b"[\xff]", "not valid JSON"),
])
def test_damaged_files(tmp_path, content, complaint):
    path = tmp_path / "damaged.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        data.load(path)
    assert str(error.value).startswith(f"{path}: ") and complaint in str(error.value) and "\n" not in str(error.value)


def test_names_and_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'msf'; did you mean 'mcf'. known are mcf, cf, zsre, world"):
        data.load("msf")
    with pytest.raises(UserError, match="none.json: no such file"):
        data.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="Is a directory"):
        data.load(str(tmp_path) + "/")
    with pytest.raises(UserError, match="should be at least 1, found 0"):
        data.load(write(tmp_path, CF), limit=0)
    assert len(data.load(write(tmp_path, CF), limit=5)) == 1


def test_the_fingerprint_sees_every_change(tmp_path):
    base = data.fingerprint(data.load(write(tmp_path, CF)))
    assert base == data.fingerprint(data.load(write(tmp_path, CF)))
    for changes in (dict(case_id=1), dict(two_hop=1), dict(generation_prompts=[]),
                    dict(requested_rewrite__target_new__id="Q9")):
        assert data.fingerprint(data.load(write(tmp_path, changed(CF, **changes)))) != base


def test_published_names_read_from_the_data_folder(golden, tmp_path, monkeypatch):
    for name in ("multi_counterfact.json", "zsre_mend_eval.json"):
        (tmp_path / name).write_bytes((golden / name).read_bytes())
    raw = json.loads((golden / "multi_counterfact.json").read_text(encoding="utf-8"))
    records = data.load("mcf", tmp_path)
    assert [r.requested_rewrite() for r in records] == [r["requested_rewrite"] for r in raw] and len(raw) == 12
    assert len(data.load("mcf", tmp_path, limit=5)) == 5
    monkeypatch.setenv("KE_DATA_DIR", str(tmp_path))
    assert data.load("mcf") == records and len(data.load("zsre")) == 6
    (tmp_path / "zsre_mend_eval.json").write_bytes((golden / "multi_counterfact.json").read_bytes())
    with pytest.raises(UserError, match="zsre_mend_eval.json, record 0: the key 'subject' is missing"):
        data.load("zsre")


def test_real_counterfact_loads_whole(realdata):
    path = realdata / "counterfact_300.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    records = data.load(path)
    assert len(records) == 300 and [r.case_id for r in records] == [r["case_id"] for r in raw]
    assert [r.request() for r in records] == [{"case_id": r["case_id"], **r["requested_rewrite"]} for r in raw]
    for record, source in zip(records, raw):
        for key in ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts"):
            assert list(getattr(record, key)) == source[key]
        assert record.subject in record.paraphrase_prompts[0] and record.relation_id.startswith("P")
    assert Counter(tuple(map(len, (r.paraphrase_prompts, r.neighborhood_prompts, r.attribute_prompts, r.generation_prompts)))
                   for r in records) == {(2, 10, 10, 10): 300}
    assert counterfact.parse(raw, "x", 10) == records[:10]


def test_real_zsre_loads_whole(realdata, caplog):
    path = realdata / "zsre_1000.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    records = data.load(path)
    assert len(records) == 1000 and [r.case_id for r in records] == list(range(1000)) and not caplog.records
    for record, source in zip(records, raw):
        assert record.prompt == source["src"].replace(source["subject"], "{}")  # here the subject stands exactly once
        assert record.prompt.format(record.subject) == source["src"]
        assert record.target_new.str == source["answers"][0] and record.target_true.str == "<|endoftext|>"
        assert record.paraphrase_prompts == (source["rephrase"],)
        assert record.extra["loc_ans"] == source["loc_ans"] and record.extra["answers"] == source["answers"]


def test_real_zsre_locality_with_gpt2s_tokenizer(realdata):
    from transformers import GPT2Tokenizer
    tok = GPT2Tokenizer(vocab=str(realdata / "gpt2_tokenizer/vocab.json"), merges=str(realdata / "gpt2_tokenizer/merges.txt"))
    assert len(tok) >= 50257
    for record in data.load(realdata / "zsre_1000.json", limit=200, tok=tok):
        prompts, answer = record.neighborhood_prompts, " " + record.extra["loc_ans"]
        ids = tok(answer)["input_ids"]
        assert len(prompts) == len(ids) and prompts[0].prompt == record.extra["loc"] + "?"
        assert prompts[-1].prompt == record.extra["loc"] + "?" + tok.decode(ids[:-1])
        if answer.isascii():
            assert "".join(p.target for p in prompts) == answer


def test_real_known_facts_load_whole(realdata):
    path = realdata / "known_1000.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    facts = data.known_facts(path)
    assert len(facts) == 1209 and [vars(fact) for fact in facts] == [{key: r[key] for key in vars(facts[0])} for r in raw]
    starts = [fact.template.format(fact.subject) for fact in facts]
    assert all(fact.prompt.startswith(start) for fact, start in zip(facts, starts))
    assert sum(fact.prompt != start for fact, start in zip(facts, starts)) == 478
    assert len(data.known_facts(path, limit=3)) == 3


def test_wrong_known_facts(tmp_path):
    fact = {"known_id": 0, "subject": "Ada", "attribute": "Oslo", "prompt": "Ada lives in"}
    assert data.known_facts(write(tmp_path, fact))[0].template is None
    with pytest.raises(UserError, match="record 1: the prompt 'Bo lives in' does not contain the subject 'Ada'"):
        data.known_facts(write(tmp_path, fact, {**fact, "prompt": "Bo lives in"}))
    with pytest.raises(UserError, match="'template' needs exactly one {}"):
        data.known_facts(write(tmp_path, {**fact, "template": "lives in"}))


@pytest.mark.parametrize("name, language, schema", [
    ("world", "en", "counterfact"), ("world-ca", "ca", "counterfact"),
    ("world-zsre", "en", "zsre"), ("world-ca-zsre", "ca", "zsre")])
def test_the_worlds_records_pass_through_the_same_parsers(name, language, schema):
    from data import world
    raw = world.load(language, schema)
    records = data.load(name)
    assert len(records) == len(raw) >= 3000 and {record.schema for record in records} == {schema}
    for record, source in zip(records, raw):
        if schema == "counterfact":
            assert record.requested_rewrite() == source["requested_rewrite"]
            assert list(record.neighborhood_prompts) == source["neighborhood_prompts"]
        else:
            assert record.prompt.format(record.subject) == source["src"] and record.target_new.str == source["answers"][0]
        assert record.extra["inverse"] == source["inverse"]
    assert data.load(name, limit=3) == records[:3]


def test_the_worlds_own_snippets_and_tfidf(monkeypatch):
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("the world needs no file"))
    records, snippets = data.load("world:300"), data.load_snippets("world:300")
    assert 300 <= len(records) < 600
    for record in records:
        texts = snippets.samples(record.relation_id, record.target_new.id)
        assert texts and all(text.name in text.text for text in texts)
    tfidf = data.load_tfidf(snippets)
    assert tfidf.source == "fitted on world:300" and len(tfidf.vectorizer.vocabulary) > 100
    assert data.load_snippets("world-ca:300").samples(record.relation_id, record.target_new.id) != texts


@pytest.mark.parametrize("name", ["world:", "world:0", "world:-1", "world-ca:many", "world:1e5"])
def test_a_world_of_no_size(name):
    with pytest.raises(UserError, match=f"data set {name!r}: the number of facts behind the colon should be 1 or more"):
        data.load(name)
