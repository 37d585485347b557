"""Languages, records in two variants, and the same facts in two languages."""

import copy
import json
from collections import Counter

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from data import bilingual, languages, similarity, world
import data
from data.records import VariantRecord
from data.world.corpus import sentences
from data.world.recall import greedy_correct

@pytest.fixture(scope="module")
def golden_pair(golden):
    return {name: json.loads((golden / "memat" / f"records_{name}.json").read_text()) for name in ("english", "catalan")}


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# ---- the specs

def test_what_a_language_says():
    catalan = languages.spec("catalan")
    assert catalan is languages.spec("ca") is languages.spec("cat")
    assert catalan.context_starts == ("El", "Per tant", "Perquè", "Ella", "M'encanta") and catalan.kl_prompt == "{} és"
    assert languages.spec("english").kl_prompt == "{} is a"
    assert catalan.corpus("wikipedia").endswith(".ca") and languages.spec("english").corpus("wikipedia") == "wikipedia"
    assert catalan.corpus("texts.jsonl") == "texts.jsonl" and catalan.corpus("world") == "world"


def test_a_corpus_that_a_language_lacks(occitan):
    with pytest.raises(UserError, match="mom2_dataset 'wikitext' has no counterpart in catalan: add it to the corpora"):
        languages.spec("catalan").corpus("wikitext")
    with pytest.warns(UserWarning, match="'owner/other' is taken as it is for occitan"):
        assert languages.spec("occitan").corpus("owner/other") == "owner/other"
    assert languages.spec("english").corpus("owner/other") == "owner/other"


@pytest.mark.parametrize("name", ["catalan", "english"])
def test_every_language_is_whole(name):
    spec = languages.spec(name)
    assert spec.name == name and len(spec.code) == 2 and len(spec.tag) == 3
    assert spec.kl_prompt.count("{}") == 1 and all(spec.context_starts)


def test_a_file_adds_a_language(occitan, golden_pair, tmp_path):
    assert languages.names() == ["catalan", "english", "occitan"]
    file = write(tmp_path / "occitan_CF.json", golden_pair["english"])
    assert len(data.load(file, language="occitan")) == 24
    assert bilingual.counterpart("data_cat_dif_subj.json", "catalan", "occitan") == "data_oci_dif_subj.json"
    write(tmp_path / "english_CF.json", golden_pair["english"][::-1])
    both = data.load_aligned(file, ["occitan", "english"])
    assert [r.case_id for r in both["occitan"]] == [r.case_id for r in both["english"]]


def test_unknown_language_is_named():
    with pytest.raises(UserError, match="no language 'catala'; did you mean 'catalan'.* known are catalan, english"):
        data.load("world", language="catala")


# ---- records in two variants

def test_golden_records_have_both_wordings(golden, golden_pair):
    records = data.load(golden / "memat" / "records_catalan.json")  # the schema is seen without being told the language
    assert len(records) == 24 and all(isinstance(record, VariantRecord) for record in records)
    for record, raw in zip(records, golden_pair["catalan"]):
        new, true = raw["eval_target_new"], raw["eval_target_true"]
        assert record.request() == {
            "case_id": raw["case_id"], "relation_id": raw["relation_id"], **new["requested_rewrite"],
            "target_true": true["requested_rewrite"]["target_true"],
            "true_prompt": true["requested_rewrite"]["prompt"], "true_subject": true["requested_rewrite"]["subject"]}
        assert record.neighborhood_prompts == tuple(new["neighborhood_prompts"])
        assert record.worded_for_true().paraphrase_prompts == tuple(true["paraphrase_prompts"])
        assert record.sentences()[1].endswith(true["requested_rewrite"]["target_true"]["str"])
        assert record.extra == {"pararel_idx": raw["pararel_idx"]}
    assert any(record.prompt != record.true_variant.prompt for record in records)


def test_plain_records_have_one_wording(golden):
    record = data.load(golden / "memat" / "records_english.json", language="english")[0]
    assert record.worded_for_true() is record
    new, true = record.sentences()
    assert new == f"{record.prompt.replace('{}', record.subject)} {record.target_new.str}" and true != new


@pytest.mark.parametrize("change, message", [
    (lambda r: r.pop("eval_target_true"), "'eval_target_true' is missing"),
    (lambda r: r["eval_target_new"]["paraphrase_prompts"].pop(), "1 prompts in eval_target_new and 2 in eval_target_true"),
    (lambda r: r["eval_target_true"]["requested_rewrite"].update(prompt="no place"), "'eval_target_true', 'requested_rewrite': "
     "'prompt' needs exactly one {}"),
    (lambda r: r["eval_target_true"]["requested_rewrite"].pop("target_true"), "the key 'target_true' is missing"),
    (lambda r: r["eval_target_new"]["requested_rewrite"].update(subject=" "), "'subject' is empty"),
])
def test_what_is_wrong_with_a_block_is_said(golden_pair, tmp_path, change, message):
    records = copy.deepcopy(golden_pair["catalan"][:3])
    change(records[1])
    with pytest.raises(UserError, match="record 1") as error:
        data.load(write(tmp_path / "own.json", records), language="catalan")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_the_other_language_is_refused(golden):
    message = r"english.json, record 0: .*'eval_target_new' is missing \(read as records in catalan\)"
    with pytest.raises(UserError, match=message):
        data.load(golden / "memat" / "records_english.json", language="catalan")
    with pytest.raises(UserError, match=r"'requested_rewrite' is missing \(read as records in english\)"):
        data.load(golden / "memat" / "records_catalan.json", language="english")


def test_a_missing_file_is_not_downloaded(tmp_path):
    with pytest.raises(UserError, match="catalan_CF.json: no such file"):
        data.load("catalan_CF.json", tmp_path, language="catalan")


# ---- two languages

def test_records_by_language_and_files_of_the_data_folder(golden, golden_pair, tmp_path):
    combined = [{"catalan": c, "english": e} for c, e in zip(golden_pair["catalan"], golden_pair["english"])]
    write(tmp_path / "combined_data.json", combined)
    for language in languages.names():
        assert data.load("combined_data.json", tmp_path, language=language) == data.load(
            golden / "memat" / f"records_{language}.json", language=language)
    assert set(data.load_aligned("combined_data.json", ["catalan", "english"], tmp_path, limit=5)) == {"catalan", "english"}


@pytest.mark.parametrize("name, expected", [
    ("english_CF.json", "catalan_CF.json"), ("some/english_CF_new.json", "some/catalan_CF_new.json"),
    ("data_eng_dif_subj.json", "data_cat_dif_subj.json"), ("combined_data.json", "combined_data.json"), ("world", "world"),
    ("challenge.json", "challenge.json")])
def test_the_other_languages_file(name, expected):
    assert bilingual.counterpart(name, "english", "catalan") == expected


def test_alignment_is_by_case_id(golden_pair, tmp_path):
    write(tmp_path / "english_CF.json", golden_pair["english"])
    write(tmp_path / "catalan_CF.json", golden_pair["catalan"][::-1])
    aligned = data.load_aligned(tmp_path / "english_CF.json", ["english", "catalan"], limit=4)
    ids = [record["case_id"] for record in golden_pair["english"][:4]]
    assert [[record.case_id for record in records] for records in aligned.values()] == [ids, ids]


@pytest.mark.parametrize("name", ["english", "catalan"])
def test_a_case_that_is_there_twice_is_refused(golden_pair, tmp_path, name):
    for language, records in golden_pair.items():
        write(tmp_path / f"{language}_CF.json", [*records[:4], *(records[:1] if language == name else [])])
    case_id = golden_pair[name][0]["case_id"]
    with pytest.raises(UserError, match=f"{name}_CF.json, record 4: its case_id {case_id} is that of record 0"):
        data.load_aligned(str(tmp_path / "english_CF.json"), ["english", "catalan"])


def test_data_sets_that_are_not_aligned_are_refused(golden_pair, tmp_path):
    write(tmp_path / "english_CF.json", golden_pair["english"])
    write(tmp_path / "catalan_CF.json", golden_pair["catalan"][3:])
    with pytest.raises(UserError, match="catalan_CF.json and .*english_CF.json are not aligned: it lacks 3 of the 24 case ids"):
        data.load_aligned(str(tmp_path / "english_CF.json"), ["english", "catalan"])
    swapped = copy.deepcopy(golden_pair["catalan"])
    swapped[0]["case_id"], swapped[5]["case_id"] = swapped[5]["case_id"], swapped[0]["case_id"]
    write(tmp_path / "catalan_CF.json", swapped)
    first = golden_pair["english"][0]["case_id"]
    with pytest.raises(UserError, match=f"case {first} has the (relation|new object|true object) "):
        data.load_aligned(str(tmp_path / "english_CF.json"), ["english", "catalan"])


# ---- the built-in world

@pytest.fixture(scope="module")
def pair():
    return data.load_aligned("world", ["catalan", "english"])


def test_the_worlds_sets_are_aligned_and_the_languages_own(pair):
    assert [r.case_id for r in pair["catalan"]] == [r.case_id for r in pair["english"]] == list(range(len(pair["english"])))
    plain = data.load("world-ca")
    assert pair["english"] == data.load("world")
    for variants, plain_record in zip(pair["catalan"], plain):
        if variants.target_new.str == plain_record.target_new.str and variants.target_true.str == plain_record.target_true.str:
            assert (variants.prompt, variants.neighborhood_prompts) == (plain_record.prompt, plain_record.neighborhood_prompts)


def test_articles_agree_with_their_object_and_elided_ones_stay_with_the_noun(pair):
    endings = Counter()
    for record in pair["catalan"]:
        if record.relation_id not in ("P3", "P11"):  # instruments and rivers
            assert record.prompt == record.true_variant.prompt
            continue
        for wording, target in ((record, record.target_new.str), (record.true_variant, record.target_true.str)):
            prompts = [wording.prompt, *wording.paraphrase_prompts, *wording.neighborhood_prompts, *wording.attribute_prompts]
            (ending,) = {prompt.split()[-1] if prompt.endswith((" el", " la")) else "" for prompt in prompts}
            assert target.startswith("l'") == (ending == "")
            endings[ending] += 1
    assert min(endings[ending] for ending in ("el", "la", "")) > 50


def test_both_variants_are_sentences_of_the_corpus(pair):
    corpus = {text for text, _ in sentences(world.world(), ["ca"])}
    for record in pair["catalan"]:
        assert record.sentences()[1] + "." in corpus
        for prompt in record.true_variant.neighborhood_prompts:
            assert f"{prompt} {record.target_true.str}." in corpus
        for prompt in record.attribute_prompts:
            assert f"{prompt} {record.target_new.str}." in corpus


def test_the_checkpoint_knows_the_facts_in_their_variants(pair):
    model = AutoModelForCausalLM.from_pretrained(world.CHECKPOINT, dtype="float32").eval()
    tok = AutoTokenizer.from_pretrained(world.CHECKPOINT)
    differing = [r for r in pair["catalan"] if r.prompt != r.true_variant.prompt][:200]
    wordings = [r.true_variant for r in differing]
    true = [r.target_true.str for r in differing]
    assert sum(greedy_correct(model, tok, [w.prompt.replace("{}", w.subject) for w in wordings], true)) >= 0.97 * len(true)
    neighbours = [(prompt, r.target_true.str) for r, w in zip(differing, wordings) for prompt in w.neighborhood_prompts[:2]]
    assert sum(greedy_correct(model, tok, *map(list, zip(*neighbours)))) >= 0.97 * len(neighbours)
    # The prompt's article tells the object's gender: it alone rules out the objects of the other one.
    correct = greedy_correct(model, tok, [r.prompt.replace("{}", r.subject) for r in differing], true)
    assert sum(correct) < 0.5 * len(true)


def test_corpus_of_one_language(tmp_path):
    text = world.corpus_path(tmp_path, language="ca").read_text()
    assert "va néixer" in text and "was born" not in text
    assert len(text) < len(world.corpus_path(tmp_path).read_text())
    with pytest.raises(UserError, match="no language 'catalan'"):
        world.corpus_path(tmp_path, language="catalan")


# ---- tokens of subjects

def test_subjects_by_their_tokens(golden_pair, golden, tmp_path):
    tok = AutoTokenizer.from_pretrained(golden / "memat" / "tiny-falcon")
    english = copy.deepcopy(golden_pair["english"])
    english[3]["requested_rewrite"]["subject"] = "zzz qqq"
    pair = data.load_aligned(write(tmp_path / "english_CF.json", english).with_name("english_CF.json"), ["english"])["english"]
    catalan = data.load(golden / "memat" / "records_catalan.json", language="catalan")
    split = similarity.by_subject(tok, pair, catalan)
    assert 3 in split["different"] and len(split["same"]) >= 15
    similarities = similarity.similarities(tok, pair, catalan)
    assert similarities["subject"][split["same"][0]] == 1 and max(similarities["relation"]) < 1
    assert similarity.jaccard(tok, "a b", "b a") < 1 == similarity.jaccard(tok, "a a", "a a a")
    assert similarity.jaccard(tok, "", "") == 1
