"""The built-in world: generator, records, corpus, tokenizer, training and the shipped checkpoint."""
import json
import random
import shutil
import time
from collections import Counter
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from data import episodes, world
import data
from data.episodes.types import SPLITS
from data.world import catalan, train
from data.world.batches import PackedCorpus
from data.world.corpus import sentences
from data.world.generate import fill, render, two_hop
from data.world.recall import greedy_correct, recall, unrelated_sentence
from data.world.tokenizer import train_tokenizer

LANGUAGES = ("en", "ca")


@pytest.fixture(scope="module")
def base():
    return world.world()


@pytest.fixture(scope="module")
def records():
    return {(language, schema): world.load(language, schema) for language in LANGUAGES for schema in world.SCHEMAS}


# ---- the generator

def test_same_seed_same_world_other_seed_another():
    first, again, other = world.generate(400, 7), world.generate(400, 7), world.generate(400, 8)
    assert first.facts == again.facts
    assert {f.subject.en for f in first.facts} != {f.subject.en for f in other.facts}


def test_sizes(base):
    assert len(base.facts) >= 3000
    assert len(base.subjects) >= 1000
    counts = Counter(fact.relation.id for fact in base.facts)
    assert len(counts) >= 10 and min(counts.values()) >= 80
    assert all(10 <= len(objects) <= 60 for objects in base.objects.values())


def test_names_are_unique_and_a_fact_has_one_object(base):
    assert len({s.en.lower() for s in base.subjects}) == len(base.subjects)
    assert len({s.en.split()[-1] for s in base.subjects}) == len(base.subjects)  # surnames, too
    assert len({(f.subject.id, f.relation.id) for f in base.facts}) == len(base.facts)


def test_hundred_thousand_facts_in_seconds():
    start = time.process_time()
    big = world.generate(100_000)
    assert time.process_time() - start < 20
    assert len(big.facts) >= 100_000
    assert len({s.en for s in big.subjects}) == len(big.subjects)


@pytest.mark.parametrize("facts", [1, 10, 400])
def test_small_worlds_have_at_least_the_facts_asked_for(facts):
    assert facts <= len(world.generate(facts).facts) <= facts + 10


# ---- phrasings

@pytest.mark.parametrize("relation", world.RELATIONS, ids=lambda r: r.name)
def test_phrasings_are_aligned_and_complete(relation):
    for language in LANGUAGES:
        phrasings = relation.phrasings(language)
        assert len(set(phrasings)) == len(phrasings) >= 5
        assert len(relation.statements(language)) >= 4 and len(relation.questions(language)) == 2
        assert all(p.count("{}") == 1 and not p.endswith(" ") for p in phrasings)
        positions = [p.index("{}") for p in relation.statements(language)]
        assert min(positions) == 0 < max(positions)  # at the start in some, later in others
    assert len(relation.en) == len(relation.ca)
    assert [p.endswith("?") for p in relation.en] == [p.endswith("?") for p in relation.ca]
    assert [p.startswith("{}") for p in relation.en] == [p.startswith("{}") for p in relation.ca]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrasing_begins_another(language):
    """Else the shorter one would have two right continuations."""
    for kind in ("person", "company", "city"):
        prompts = [p for r in world.RELATIONS if r.kind == kind for p in r.phrasings(language)]
        prompts += [r.hop[1 + LANGUAGES.index(language)] for r in world.RELATIONS if r.kind == kind and r.hop]
        assert not [(a, b) for a, b in permutations(prompts, 2) if b.startswith(a)]


def test_catalan_phrasings_leave_no_article_or_preposition_to_the_object():
    for relation in world.RELATIONS:
        for prompt in relation.ca:
            assert prompt.split()[-1] not in {"de", "el", "la", "l'", "d'", "del", "al", "els", "les"}, prompt


# ---- Catalan

@pytest.mark.parametrize("name, expected", [
    ("Anna", "d'Anna"), ("Pere", "de Pere"), ("Hug", "d'Hug"), ("Úrsula", "d'Úrsula"), ("Iolanda", "de Iolanda"),
    ("Ivan", "d'Ivan"), ("Yara", "de Yara"), ("Wanda", "de Wanda"), ("Òstria", "d'Òstria"), ("Quim", "de Quim")])
def test_de(name, expected):
    assert catalan.de(name) + name == expected


@pytest.mark.parametrize("name, gender, expected", [
    ("Pere", "m", "en Pere"), ("Maria", "f", "la Maria"), ("Anna", "f", "l'Anna"), ("Oriol", "m", "l'Oriol"),
    ("Isabel", "f", "la Isabel"), ("Irene", "f", "la Irene"), ("Iolanda", "f", "la Iolanda"), ("Ivan", "m", "l'Ivan"),
    ("Úrsula", "f", "l'Úrsula"), ("Ilse", "f", "l'Ilse"), ("Helena", "f", "l'Helena"), ("Hug", "m", "l'Hug")])
def test_personal_article(name, gender, expected):
    assert catalan.personal_article(name, gender) + name == expected


@pytest.mark.parametrize("noun, gender, expected", [
    ("violí", "m", "el violí"), ("arpa", "f", "l'arpa"), ("orgue", "m", "l'orgue"), ("flauta", "f", "la flauta"),
    ("illa", "f", "l'illa"), ("universitat", "f", "la universitat"), ("hora", "f", "l'hora"), ("iode", "m", "el iode")])
def test_article(noun, gender, expected):
    assert catalan.article(noun, gender) + noun == expected


def test_elision_in_prompts(base):
    subject = next(s for s in base.subjects if s.en.startswith("Anna "))
    assert fill("El sou {de}{} el paga", subject, "ca") == "El sou d'{} el paga"
    assert render("Cada matí {art}{} va", subject, "ca") == f"Cada matí l'{subject.ca} va"
    for language in LANGUAGES:
        for text, _ in sentences(base, [language]):
            assert "{" not in text and "  " not in text
            assert not any(f" de {vowel}" in text for vowel in "AEOÀÈÉÒÓÚ")


# ---- records

def test_languages_are_aligned(records):
    for english, catalan_ in zip(records["en", "counterfact"], records["ca", "counterfact"], strict=True):
        a, b = english["requested_rewrite"], catalan_["requested_rewrite"]
        assert (a["subject"], a["relation_id"], a["target_new"]["id"], a["target_true"]["id"]) == \
               (b["subject"], b["relation_id"], b["target_new"]["id"], b["target_true"]["id"])
        assert len(english["neighborhood_prompts"]) == len(catalan_["neighborhood_prompts"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_counterfact_records(records, base, language):
    facts = {(f.subject.name(language), f.relation.id): f.object.id for f in base.facts}
    prompts = {render(f.relation.phrasings(language)[0], f.subject, language): f.object.id for f in base.facts}
    some = records[language, "counterfact"]
    assert [r["case_id"] for r in some] == list(range(len(base.facts)))
    for record in some:
        rewrite = record["requested_rewrite"]
        new, true, subject = rewrite["target_new"], rewrite["target_true"], rewrite["subject"]
        assert rewrite["prompt"].count("{}") == 1 and facts[subject, rewrite["relation_id"]] == true["id"] != new["id"]
        assert new["str"] != true["str"]
        assert len(set(record["paraphrase_prompts"])) == 2 and all(subject in p for p in record["paraphrase_prompts"])
        assert all(new["str"] not in p.split(". ")[0] for p in record["paraphrase_prompts"])
        rewrite_prompt = rewrite["prompt"].replace("{}", subject)
        assert prompts[rewrite_prompt] == true["id"]
        assert 1 <= len(record["neighborhood_prompts"]) <= 10
        assert all(prompts[p] == true["id"] and p != rewrite_prompt for p in record["neighborhood_prompts"])
        assert record["attribute_prompts"] and all(prompts[p] == new["id"] for p in record["attribute_prompts"])
        assert record["generation_prompts"] and all(subject in p for p in record["generation_prompts"])


def test_most_cases_have_ten_neighbours_and_first_cases_distinct_subjects(records):
    some = records["en", "counterfact"]
    assert sum(len(r["neighborhood_prompts"]) == 10 for r in some) > 0.8 * len(some)
    assert len({r["requested_rewrite"]["subject"] for r in some[:1000]}) == 1000


@pytest.mark.parametrize("language", LANGUAGES)
def test_zsre_records(records, language):
    for cf, record in zip(records[language, "counterfact"], records[language, "zsre"], strict=True):
        rewrite = cf["requested_rewrite"]
        assert record["src"].count(record["subject"]) == record["rephrase"].count(record["subject"]) == 1
        assert record["src"] != record["rephrase"] and record["src"].endswith("?")
        assert record["answers"] == [rewrite["target_new"]["str"]] == [record["alt"]]
        assert record["pred"] == rewrite["target_true"]["str"]
        assert record["loc"].startswith("nq question: ") and "?" not in record["loc"] and record["subject"] not in record["loc"]


def test_facts_about_subjects_that_no_training_saw():
    whole, held_out, zsre_held_out = (data.load(name) for name in ("world", "world-test", "world-zsre-test"))
    train, validation, test = ({row.subject for row in episodes.load("qa", split, "world", {}).rows} for split in SPLITS)
    assert 250 < len(held_out) < 400 and {record.case_id for record in held_out} <= {record.case_id for record in whole}
    subjects = [record.subject for record in held_out]
    catalan, both = data.load("world-ca-test"), data.load_aligned("world-test", ["english", "catalan"])
    assert [record.case_id for record in catalan] == [record.case_id for record in held_out]
    assert all([record.case_id for record in records] == [record.case_id for record in held_out] for records in both.values())
    assert subjects == [record.subject for record in zsre_held_out] and set(subjects) == test
    assert not test & (train | validation)


@pytest.mark.parametrize("language", LANGUAGES)
def test_inverse_and_two_hop_answers(records, base, language):
    objects = {f.object.id: f.object for f in base.facts}
    by_name = {(f.subject.name(language), f.relation.id): f for f in base.facts}
    chained = 0
    for record in records[language, "counterfact"]:
        rewrite = record["requested_rewrite"]
        fact = by_name[rewrite["subject"], rewrite["relation_id"]]
        assert rewrite["subject"] in record["inverse"]["answers_true"]
        assert rewrite["target_true"]["str"] in record["inverse"]["prompt_true"]
        assert rewrite["target_new"]["str"] in record["inverse"]["prompt_new"]
        if "two_hop" in record:
            chained += 1
            new = objects[rewrite["target_new"]["id"]]
            assert record["two_hop"]["answer_true"] == two_hop(base, fact, fact.object).name(language)
            assert record["two_hop"]["answer_new"] == two_hop(base, fact, new).name(language)
    assert chained > 500


def test_snippets_cover_every_object(records):
    pairs = {(s["relation_id"], s["target_id"]): s["samples"] for s in world.snippets("en")}
    for record in records["en", "counterfact"]:
        rewrite = record["requested_rewrite"]
        names = {sample["name"] for sample in pairs[rewrite["relation_id"], rewrite["target_true"]["id"]]}
        assert rewrite["subject"] in names
        samples = pairs[rewrite["relation_id"], rewrite["target_new"]["id"]]
        assert all(rewrite["target_new"]["str"] in s["text"] and s["name"] in s["text"] for s in samples)


def test_unknown_language_and_schema_are_named():
    with pytest.raises(UserError, match="no language 'eng'; did you mean 'en'"):
        world.load("eng")
    with pytest.raises(UserError, match="no schema 'counterfacts'; did you mean 'counterfact'"):
        world.load("en", "counterfacts")
    with pytest.raises(UserError, match="at least 1 fact"):
        world.load(facts=0)
    with pytest.raises(UserError, match="a world of 8 facts relation P2 has only one object, .*ask for more"):
        world.load(facts=1)
    assert len(world.load(facts=300)) >= 300


def test_corpus_file_is_written_once_and_whole(tmp_path, base):
    path = world.corpus_path(tmp_path)
    stamp = path.stat().st_mtime_ns
    assert world.corpus_path(tmp_path).stat().st_mtime_ns == stamp
    text = " ".join(json.loads(line)["text"] for line in path.read_text().splitlines())
    assert all(s.en in text for s in base.subjects)
    path.write_text("cut off")
    assert world.corpus_path(tmp_path).stat().st_size > 1_000_000


# ---- tokenizer and training

def test_tokenizer_encodes_any_text():
    tok = train_tokenizer([text for text, _ in sentences(world.generate(100))], 600)
    for text in ("Anna va néixer a Vic.", " 東京 – naïve 🙂\t\n", "<b>~#"):
        assert tok.decode(tok(text)["input_ids"]) == text
    assert tok.eos_token == tok.bos_token == tok.pad_token == "<|endoftext|>"
    assert tok("Vic")["input_ids"] != tok(" Vic")["input_ids"]  # no space is put in front


def test_rows_begin_with_a_sentence_and_hold_every_sentence_once():
    small = world.generate(100)
    texts, ranks = train.corpus_with_ranks(small)
    tok = train_tokenizer(texts, 600)
    packed = PackedCorpus(tok, texts, ranks, 128, 0)
    epoch = tok.batch_decode(packed.epoch(0))
    assert all(any(row.startswith(text[:12]) for text in texts) for row in epoch)
    whole = " ".join(epoch)
    assert sum(text in whole for text in texts) > 0.99 * len(texts)  # the last, short row is dropped
    assert torch.equal(packed.epoch(3), PackedCorpus(tok, texts, ranks, 128, 0).epoch(3))
    assert not torch.equal(packed.epoch(0), packed.epoch(1))


def test_warm_epochs_have_few_subjects_and_all_of_their_facts():
    small = world.generate(100)
    texts, ranks = train.corpus_with_ranks(small)
    tok = train_tokenizer(texts, 600)
    whole = " ".join(tok.batch_decode(PackedCorpus(tok, texts, ranks, 128, 0).epoch(0, subjects=4)))
    subjects = {fact.subject for fact in small.facts
                if f"{render(fact.relation.en[1], fact.subject, 'en')} {fact.object.en}." in whole}
    assert 3 <= len(subjects) <= 4
    assert sum(fact.subject in subjects for fact in small.facts) >= 2 * len(subjects)


TINY = ["--facts", "60", "--layers", "2", "--width", "32", "--heads", "2", "--vocab", "400", "--batch", "16",
        "--epochs", "2", "--warm_epochs", "1", "--threads", "1"]


def test_an_interrupted_training_ends_the_same(tmp_path):
    train.train(train.parse_args(["--out", str(tmp_path / "whole"), *TINY]))
    for _ in range(12):  # stops inside and between epochs; the last calls find the run finished
        train.train(train.parse_args(["--out", str(tmp_path / "parts"), *TINY, "--stop_after", "11"]))
    whole, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [json.loads((tmp_path / name / "model" / "training_log.json").read_text()) for name in ("whole", "parts")]
    for log in logs:
        for entry in log["epochs"]:
            entry.pop("seconds")
    assert logs[0] == logs[1] and len(logs[0]["epochs"]) == 3


def test_a_run_with_other_settings_is_not_continued(tmp_path):
    train.train(train.parse_args(["--out", str(tmp_path), *TINY, "--stop_after", "1"]))
    with pytest.raises(UserError, match="other settings .epochs.*choose another --out"):
        train.train(train.parse_args(["--out", str(tmp_path), *TINY, "--epochs", "3"]))


@pytest.mark.parametrize("flags, message", [
    (["--width", "30", "--heads", "4"], "can't be divided"), (["--epochs", "0"], "--epochs must be at least 1"),
    (["--vocab", "100"], "--vocab 100 is too small"), (["--decay", "0"], "shares"),
    (["--muon_lr", "-1"], "--muon_lr must be a finite number"), (["--foo"], "unrecognized arguments: --foo")])
def test_impossible_settings(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        train.train(train.parse_args(["--out", str(tmp_path / "run"), *flags]))
    assert not (tmp_path / "run").exists()


def test_figure_of_the_training(tmp_path):
    from figures import world_training

    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    shutil.copy(world.CHECKPOINT / "training_log.json", run / "model")
    world_training.main([str(run), "--out", str(run / "training")])
    assert (run / "training.pdf").read_bytes().startswith(b"%PDF")
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="other.json: not a training_log.json"):
        world_training.main([str(tmp_path / "other.json")])


# ---- the shipped checkpoint

@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world.CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(world.CHECKPOINT)


def test_checkpoint_is_small():
    assert sum(file.stat().st_size for file in world.CHECKPOINT.iterdir()) <= 16e6


@pytest.mark.parametrize("prefixed", [False, True], ids=["alone", "after an unrelated sentence"])
def test_checkpoint_knows_the_facts_in_every_phrasing(shipped, base, prefixed):
    sample = random.Random(1).sample(base.facts, 200)
    shares = recall(*shipped, base, sample, prefixed=prefixed)
    assert all(share >= 0.95 for language in LANGUAGES for share in shares[language]), shares


def test_recall_counts_what_greedy_decoding_does(shipped, base):
    """`greedy_correct` reads one teacher-forced pass; generation must agree, also on wrong targets."""
    model, tok = shipped
    facts = random.Random(2).sample(base.facts, 12)
    prompts = [render(f.relation.ca[0], f.subject, "ca") for f in facts]
    targets = [f.object.ca if i % 3 else "xocolata" for i, f in enumerate(facts)]
    for prompt, target, right in zip(prompts, targets, greedy_correct(model, tok, prompts, targets)):
        ids = tok(prompt, return_tensors="pt")
        generated = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tok.pad_token_id)
        assert tok.decode(generated[0, ids["input_ids"].shape[1]:]).startswith(" " + target) == right


def test_unrelated_sentence_names_nothing_of_the_fact(base):
    rng = random.Random(3)
    for fact in base.facts[::40]:
        sentence = unrelated_sentence(base, fact, "en", rng, avoid=base.objects[fact.relation.id][0])
        assert fact.subject.en not in sentence and f" {fact.object.en}." not in sentence
        assert f" {base.objects[fact.relation.id][0].en}." not in sentence
