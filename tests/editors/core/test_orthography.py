"""Targets continue their prompts, sentences end and words end as they do in each script, whatever the tokenizer."""

import dataclasses

import pytest

import data
import editors
from common.errors import UserError
from common.orthography import continuation, ends_sentence, ends_word, is_whole_word, stops
from data import counterfact, languages, zsre
from editors.core.prompts import parse_requests, prompt_ids, target_ids
from experiments.metrics.scoring import compare, Tokens
from tests.models import TOKENIZERS, TRAINED, tiny_model, tiny_tokenizer, trained_tokenizer

JOINED = [
    ("中国的首都是", "北京"), ("日本の首都は", "東京"), ("成立于", "2006"), ("首都：", "Tokyo"), ("首都:", "北京"),
    ("在2008", "年"), ("首都（", "北京"), ("他说“", "北京"), ("他说“上海”和", "北京"), ("他说“上海”", "北京"),
    ("小说", "《红楼梦》"),
    ("1+1=", "二"), ("サーバー", "x"), ("เมืองหลวงคือ", "กรุงเทพ"), ("ເມືອງຫຼວງແມ່ນ", "ວຽງຈັນ"), ("រាជធានីគឺ", "ភ្នំពេញ"),
    ("မြို့တော်မှာ", "ရန်ကုန်"), ("བོད་", "ལྷ་ས"), ("ꦗꦮ", "ꦏ"), ("می\u200c", "روم"),
    ("La ciutat de l'", "Alguer"), ("Viu a l’", "Alguer"), ("parla d'", "Alacant"), ("nell'", "Aquila"), ("qu'", "elle"),
    ("la cançó 'L'estaca' és de l'", "autor"),
    ("Der Film „", "Titanic"), ("Der Film »", "Titanic"), ("Le film «", "Titanic"), ("Filmen ”", "Titanic"),
    ('He said "', "Honda"), ("He said '", "Honda"), ("(", "Honda"), ("¿", "Qué"), ("Question\n", "Honda"), ("Name:\t", "Honda"),
    ("Honda", ")"), ("Honda", "!"), ("Honda", ", Inc."), ("東京", "。"), ("e", "\u0301t"),
]
SPACED = [
    ("The car is made by", "Honda"), ("Q:", "Honda"), ("Q:", "2006"), ("costs $", "5"), ("🚗", "Honda"), ("", "Honda"),
    ("The capital is", "北京"), ("Capital:", "北京"), ("Tokyo (1964),", "東京"), ("the word", "《红楼梦》"),
    ("대한민국의 수도는", "서울"), ("عاصمة مصر هي", "القاهرة"), ("بھارت کا دارالحکومت", "دہلی"), ("भारत की राजधानी", "दिल्ली"),
    ("בירת", "ישראל"),
    ("רח'", "הרצל"), ("La capital de Catalunya és", "Barcelona"),
    ("the Beatles'", "Help"), ("Marx'", "Kapital"), ("the film 'Titanic'", "is"), ("rock 'n'", "roll"), ("about 5'", "x"),
    ("Der Film „Titanic“", "x"), ("Der Film »Titanic«", "x"), ("Le film « Titanic »", "x"), ("Filmen ”Titanic”", "x"),
    ('the film "Titanic"', "x"), ("the film “Titanic”", "x"),
    ("the city", "'s-Hertogenbosch"), ("the city", "’s-Hertogenbosch"),
    ("the language", ".NET"), ("the album", "...And Justice"),
]


@pytest.mark.parametrize("prompt, target", JOINED)
def test_joined(prompt, target):
    for spaced_prompt in (prompt, prompt + " "):
        for spaced_target in (target, f" {target} "):
            assert continuation(spaced_prompt, spaced_target) == (prompt, target)
    assert continuation(prompt, target, joined=False) == (prompt, " " + target)


@pytest.mark.parametrize("prompt, target", SPACED)
def test_spaced(prompt, target):
    for spaced_prompt in (prompt, prompt + "  ", prompt + "\u00a0"):
        for spaced_target in (target, f" {target}\n"):
            assert continuation(spaced_prompt, spaced_target) == (prompt, " " + target)
    assert continuation(prompt, target, joined=True) == (prompt, target)


@pytest.mark.parametrize("said, target, expected", [
    ("东京。", "东京", (True, True)), ("东京。日本", "东京", (True, True)), ("北京是中国的首都", "北京", (False, True)),
    ("東京です。", "東京", (False, True)), ("東京！？", "東京", (True, True)), ("東京。」と", "東京", (True, True)),
    ("东京……然后", "东京", (True, True)), ("京都", "東京", (False, False)), ("2006年", "2006", (False, True)),
    ("กรุงเทพมหานคร", "กรุงเทพ", (False, True)), ("กรุงเทพ\n", "กรุงเทพ", (True, True)),
    (" 서울.", "서울", (True, True)), (" 서울은", "서울", (False, False)),
    (" القاهرة؟ نعم", "القاهرة", (True, True)), (" القاهرة۔", "القاهرة", (True, True)),
    (" दिल्ली।", "दिल्ली", (True, True)), (" दिल्ली है", "दिल्ली", (False, True)), (" दिल्ली", "दिल्ल", (False, False)),
    ("ရန်ကုန်။", "ရန်ကုန်", (True, True)), ("ភ្នំពេញ។", "ភ្នំពេញ", (True, True)), ("ལྷ་ས།", "ལྷ་ས", (True, True)),
    ("کتاب\u200cها", "کتاب", (False, False)), (" cafe\u0301.", "cafe", (False, False)),
    (" Berlin.“ Dann", "Berlin", (True, True)), (" 東京。 次", "東京。", (True, True)), ("東京。次", "東京。", (True, True)),
])
def test_compare(said, target, expected):
    assert compare(said, target) == expected


def test_what_ends_a_word_or_a_sentence():
    assert ends_word("Paris", ", so") and ends_word("東京", "大学") and not ends_word("Paris", "ian")
    assert is_whole_word("of Ma?", 3, 5) and not is_whole_word("Mali", 0, 2) and is_whole_word("在北京大学", 1, 3)
    assert ends_sentence("so.") and ends_sentence("「はい。」") and ends_sentence('He said "no."') and not ends_sentence("so,")
    assert stops("\nIt") and stops("") and not stops(".5") and not stops("、")


LINES = {  # language: prompt, target, whether they are joined
    "Chinese": ("中国的首都是", "北京", True), "Japanese": ("日本の首都は", "東京", True),
    "Thai": ("เมืองหลวงของประเทศไทยคือ", "กรุงเทพ", True), "Korean": ("대한민국의 수도는", "서울", False),
    "Arabic": ("عاصمة مصر هي", "القاهرة", False), "Hindi": ("भारत की राजधानी", "दिल्ली", False),
    "Catalan": ("La ciutat de l'", "Alguer", True),
}


@pytest.mark.parametrize("language", LINES)
@pytest.mark.parametrize("kind", TRAINED)
def test_ids_with_trained_tokenizers(kind, language):
    """Prompt and target make the text, and spaces around them change nothing: in edits and in metrics."""
    tok, (prompt, target, joined) = trained_tokenizer(kind), LINES[language]
    ids = target_ids(tok, prompt, target)
    text = prompt + target if joined else f"{prompt} {target}"
    assert tok.decode([*prompt_ids(tok, prompt), *ids], skip_special_tokens=True).lstrip() == text
    subject = prompt.split("的")[0].split("の")[0].split()[-1]
    template = prompt.replace(subject, "{}", 1)
    tokens = Tokens(tok)
    for before, after in (("", ""), (" ", ""), ("", " "), (" ", " \n")):
        for ending in ("", " "):
            spaced = before + target + after
            request, = parse_requests([{"prompt": template + ending, "subject": subject, "target_new": spaced}], tok)
            assert request.target_ids(tok) == ids and tuple(ids) == tokens.target(prompt + ending, spaced, None)
            assert tokens.prompt(prompt + ending) == prompt_ids(tok, request.text)
    assert parse_requests([request]) == [request]
    other = target_ids(tok, prompt, target, joined=not joined)
    assert other != ids and other == target_ids(tok, prompt + " ", " " + target, not joined)


@pytest.mark.parametrize("kind", [*TOKENIZERS, *TRAINED])
@pytest.mark.parametrize("prompt, target", [
    ("Where was Orla born?", "2006"), ("Orla Venn was born in", "12 May 1999"), ("Orla says:\n", "Nyvian"), ("Orla ('", "Venn"),
    ("Orla speaks", "Nyvian!"), ("Parla de l'", "Alguer"), ("Orla", "-5"),
])
def test_no_space_piece_stands_before_a_joined_target(kind, prompt, target):
    tok = trained_tokenizer(kind) if kind in TRAINED else tiny_tokenizer(kind)
    row, ids = prompt_ids(tok, prompt), target_ids(tok, prompt, target)
    _, text = continuation(prompt, target)
    whole, behind = (tok.decode(part, skip_special_tokens=True) for part in ([*row, *ids], row))
    if tok.unk_token_id not in (*row, *ids):
        assert whole.lstrip(" ") == (prompt + text).lstrip(" ") and behind.lstrip(" ") == prompt
    assert tok.bos_token_id not in ids and tok.eos_token_id not in ids


def test_a_token_of_both_sides_is_not_taken():
    """"在北京" is one token of this text: the target keeps its own characters, whatever would merge."""
    tok, prompt = trained_tokenizer("llama2"), "北京大学在"
    whole, ids = tok(prompt + "北京").input_ids, target_ids(tok, prompt, "北京")
    assert tok.decode(ids) == "北京" and whole != [*prompt_ids(tok, prompt), *ids]


def test_the_same_edit_whatever_spaces_stand_around(tiny_gpt2):
    """A3: " Honda", "Honda " and a prompt with a space at its end were three other edits."""
    model, tok = tiny_gpt2
    hparams = {"layers": [1], "num_steps": 2, "lr": 1e-3, "weight_decay": 0.0, "norm_constraint": 1e-3}
    deltas = []
    for space, target in (("", "Honda"), ("", " Honda"), ("", "Honda "), (" ", "Honda")):
        edit = editors.load("FT", hparams).edit(model, tok, [
            {"prompt": "{} is made by" + space, "subject": "The car", "target_new": target}])
        deltas.append(edit.deltas())
    for delta in deltas[1:]:
        assert all((delta[name] == deltas[0][name]).all() for name in delta)


def test_a_records_own_word():
    raw = {"case_id": 0, "requested_rewrite": {"prompt": "{} is in", "subject": "Orla", "target_new": {"str": "A"},
                                               "target_true": {"str": "B"}},
           "paraphrase_prompts": [], "neighborhood_prompts": []}
    plain, joined, inside = counterfact.parse([
        raw, raw | {"case_id": 1, "joined": True},
        raw | {"case_id": 2, "requested_rewrite": raw["requested_rewrite"] | {"joined": False}}], "x")
    assert (plain.joined, joined.joined, inside.joined) == (None, True, False)
    assert "joined" not in plain.request() and joined.request()["joined"] is True
    assert [r.target_new for r in parse_requests([r.request() for r in (plain, joined, inside)])] == [" A", "A", " A"]
    assert joined.sentences() == ("Orla is inA", "Orla is inB")
    with pytest.raises(UserError, match="'joined' should be true or false, found the string 'yes'"):
        counterfact.parse([raw | {"joined": "yes"}], "x")
    with pytest.raises(UserError, match=r"request 0 \(case_id 3\): joined must be true or false, not 1"):
        parse_requests([{"case_id": 3, "prompt": "{} is", "subject": "Orla", "target_new": "A", "joined": 1}])


def test_a_languages_word(golden, monkeypatch):
    """Holds where a record does not say so itself."""
    path, english = golden / "multi_counterfact.json", languages.spec("english")
    assert {record.joined for record in data.load(path, language="english")} == {None}
    monkeypatch.setattr(languages, "spec", lambda name: dataclasses.replace(english, joined=True))
    assert {record.joined for record in data.load(path, language="english")} == {True}


def test_a_question_is_joined_as_its_record_says():
    raw = {"subject": "Orla", "src": "Where is Orla?", "pred": "", "rephrase": "Orla is where?", "alt": "", "answers": ["A"],
           "loc": "nq question: who", "loc_ans": "B", "cond": "", "joined": True}
    record, = zsre.parse([raw], "x")
    assert record.joined is True
    tok = tiny_tokenizer()
    assert Tokens(tok).target("Where is Orla?", "A", record.joined) == tuple(target_ids(tok, "Where is Orla?", "A", True))


def test_a_lookup_answers_without_a_space():
    """The label that a cache gives word for word continues its prompt."""
    from editors.memory.answerers import LookupAnswerer
    from editors.memory.store import EditStore
    tok, memory = trained_tokenizer("byte_level_bpe"), EditStore()
    memory.add("中国的首都是", "北京")
    memory.add("Orla is in", "Lutmere")
    memory.add("Orla was in", "Lutmere", joined=True)
    answerer = LookupAnswerer(memory, 1.0, 10.0, tiny_model("gpt2", vocab_size=len(tok)), tok)
    assert [tok.decode(label[:-1]) for label in answerer._labels] == ["北京", " Lutmere", "Lutmere"]
