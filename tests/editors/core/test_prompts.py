"""Requests are checked, and the looked-up token is the right one whatever the tokenizer does."""

import copy
import json

import pytest
import torch
from tokenizers import normalizers
from transformers import AutoTokenizer, GPT2TokenizerFast

from common.errors import UserError
from editors.core.prompts import (
    FACT_TOKENS, Request, check_lengths, encode_target, fill, locate, locate_all, pack, pad_batch, pad_id, parse_requests,
    split_template, tokenize,
)
from tests.conftest import GOLDEN
from tests.models import TOKENIZERS, tiny_tokenizer

# Published indices that are off, because the subject is stripped for counting but not in the text:
# (prompt, subject) -> {fact_token: (published, ours)}. The text reads "… of  Tobias Rime  (a surgeon) …".
DEVIATIONS = {
    ("The letters of {} (a surgeon) were", " Tobias Rime "): {
        "subject_first": (4, 5), "subject_last": (5, 6), "subject_first_after_last": (6, 7),
    }
}


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gptj"])
@pytest.mark.parametrize("fact_token", FACT_TOKENS)
def test_indices_equal_the_published_ones(name, fact_token):
    tok = AutoTokenizer.from_pretrained(GOLDEN / name)
    deviating = 0
    for case in json.loads((GOLDEN / f"indices_{name}.json").read_text())["cases"]:
        located = locate(tok, case["prompt"], case["subject"], fact_token)
        assert located.ids == case["input_ids"]
        separate = fact_token == "subject_last_separate"  # always as published
        published = case["subject_last" if separate else fact_token] % len(located.ids)  # the published "last" is -1
        expected = DEVIATIONS.get((case["prompt"], case["subject"]), {}).get(fact_token, (published, published))
        assert (published, located.index) == expected, case["prompt"]
        deviating += expected[0] != expected[1]
    assert deviating == (fact_token not in ("last", "subject_last_separate"))


# Template, subject, and what the fact_tokens "subject_first", "subject_last" must hold a character of.
SEAMS = [
    ("{} is Nyvian.", "Orla Venn"),
    ("The language of {} is Nyvian.", "Orla Venn"),
    ("The language of l'{} is Nyvian.", "Orla Venn"),  # elision
    ("The un{}ly clockmaker", "Venn"),  # inside a word
    ("Orla Venn and {} met Orla Venn.", "Orla Venn"),  # thrice in the text
    ("The language of {}", "Zoë Märtens"),  # multi-byte characters, at the end
    ("日本 and {}: Nyvian", "日本"),  # characters of three tokens each
    ("The letters of {} (a surgeon)", " Tobias Rime "),  # spaces at the subject's ends
    ("In {} is Nyvian.", "{x} {"),  # braces in the subject
    ("In {{}} is Nyvian.", "{}"),
    ("In\n\n{}\nThe", "Orla\nVenn"),
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template, subject", SEAMS)
def test_subject_tokens_by_decoding(kind, template, subject):
    """Checked without offsets: up to subject_last the text holds the whole subject, and one token less does not."""
    tok = tiny_tokenizer(kind)
    before, after = split_template(template)
    last = locate(tok, template, subject, "subject_last")

    def text(ids):
        return tok.decode(ids, skip_special_tokens=True).lstrip(" ")

    def holds(ids):
        return text(ids).startswith((before + subject).strip(" "))

    assert text(last.ids) == (before + subject + after).lstrip(" ")
    assert holds(last.ids[: last.index + 1]) and not holds(last.ids[: last.index])

    first = locate(tok, template, subject, "subject_first")
    assert first.ids == last.ids and first.index <= last.index
    start = (before + subject[: len(subject) - len(subject.lstrip())]).strip(" ")
    if start:  # in front of subject_first stands what precedes the subject, or less, but nothing of the subject
        assert start.startswith(text(first.ids[: first.index]).strip(" "))
    else:
        assert first.index == (tok.bos_token_id in first.ids)

    behind = locate(tok, template, subject, "subject_first_after_last")
    assert behind.index == last.index + (after != "")
    assert locate(tok, template, subject, "last").index == len(last.ids) - 1


def test_last_of_a_prompt_that_ends_with_a_space():
    tok = tiny_tokenizer()
    located = locate(tok, "{} speaks ", "Orla", "last")
    assert tok.decode(located.ids[located.index]) == " "


def test_many_at_once_are_the_same():
    tok = tiny_tokenizer("byte_level_bos")
    assert locate_all(tok, SEAMS, "subject_last") == [locate(tok, *seam, "subject_last") for seam in SEAMS]
    assert locate_all(tok, [], "last") == []


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos", "byte_level_eos"])
def test_prompt_and_target_must_fit_into_the_positions(kind):
    """Exactly as many tokens as positions fit: those of context, prompt and target but its last, with BOS and without EOS."""
    tok, templates = tiny_tokenizer(kind), ["{}", "In the city of Lutmere. {}"]
    requests = parse_requests([
        {"case_id": 4, "prompt": "{} is", "subject": "Orla", "target_new": "x"},
        {"case_id": 9, "prompt": "{} works as", "subject": "Tamsin Brackholt", "target_new": "a clockmaker"},
    ])
    fed = "In the city of Lutmere. Tamsin Brackholt works as a clockmaker"
    longest = len(tokenize(tok, [fed])[0][0]) - 1
    check_lengths(tok, requests, templates, longest)
    check_lengths(tok, requests, templates, None)
    message = rf"request 1 \(case_id 9\): .* take {longest} tokens in the context 'In the .*', but the model has {longest - 1}"
    with pytest.raises(UserError, match=message) as error:
        check_lengths(tok, requests, templates, longest - 1)
    assert "\n" not in str(error.value)
    check_lengths(tok, requests, ["{}"], longest - 1)
    with pytest.raises(UserError, match=r"request 0 \(case_id 4\): .* tokens, but the model has 1 positions"):
        check_lengths(tok, requests, templates, 1)


def test_padding_is_a_token_that_the_model_has():
    """An added padding token may be missing from a model's embedding; one of the vocabulary is used."""
    tok = copy.deepcopy(tiny_tokenizer())
    tok.pad_token = tok.convert_ids_to_tokens(7)
    assert pad_id(tok) == tok.pad_token_id == 7
    tok.add_special_tokens({"pad_token": "[PAD]"})
    assert tok.pad_token_id == len(tok) - 1 and pad_id(tok) == tok.eos_token_id == 2
    tok.add_special_tokens({"eos_token": "[EOS]"})
    assert pad_id(tok) == 0


def test_pack_keeps_every_row_within_the_budget():
    rows = [(7,) * n for n in (3, 0, 9, 1, 4, 4, 12)]
    assert [list(map(len, batch)) for batch in pack(rows, 10)] == [[12], [9], [4, 4], [3, 1]]
    assert list(pack([], 10)) == []


def test_an_eos_behind_the_text_is_left_out():
    tok = tiny_tokenizer("byte_level_eos")
    assert tok("Orla")["input_ids"][-1] == tok.eos_token_id
    assert locate(tok, "{}", "Orla", "last").ids == tok("Orla")["input_ids"][:-1]
    assert tokenize(tok, ["Orla<eos>"])[0][0][-1] == tok.eos_token_id  # but not one that stands in the text


def test_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow gives no character offsets: load a fast tokenizer"):
        locate(Slow(), "{} is", "Orla", "last")


def test_subject_without_tokens_is_refused():
    tok = tiny_tokenizer()
    vanishing = AutoTokenizer.from_pretrained(GOLDEN / "tiny-gpt2")
    vanishing.backend_tokenizer.normalizer = normalizers.Replace("Orla", "")
    with pytest.raises(UserError, match="no token of 'The Orla is' covers the subject 'Orla'"):
        locate(vanishing, "The {} is", "Orla", "subject_last")
    with pytest.raises(UserError, match="covers the subject ' '"):
        locate(tok, "The{}is", " ", "subject_last")
    with pytest.raises(UserError, match=r"request 0 \(case_id 7\): no token"):
        parse_requests([{"case_id": 7, "prompt": "The {} is", "subject": "Orla", "target_new": "x"}], vanishing)


def test_unknown_fact_token():
    with pytest.raises(UserError, match="unknown fact_token 'subject'; known: subject_first, "):
        locate(tiny_tokenizer(), "{} is", "Orla", "subject")


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{0}", "{ }"])
def test_template_needs_exactly_one_place(template):
    with pytest.raises(UserError, match="needs exactly one"):
        split_template(template)


def test_fill_never_formats():
    assert fill("a. {}", "{} is {x}") == "a. {} is {x}"
    assert fill("{0} {} }", "y") == "{0} y }"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("target", [" Nyvian", " the clockmaker", " 12", " {x}", " à la", "Nyvian"])
def test_target_continues_a_text(kind, target):
    """The ids are those that follow a prompt's own when prompt and target are tokenised together."""
    tok = tiny_tokenizer(kind)
    prompt = tokenize(tok, ["The city is:"])[0][0]
    whole = tokenize(tok, ["The city is:" + target])[0][0]
    assert prompt + encode_target(tok, target) == whole


def test_target_alone_would_have_a_second_space():
    tok = tiny_tokenizer("metaspace")
    assert tok.convert_ids_to_tokens(tok(" Nyvian", add_special_tokens=False)["input_ids"])[0] == "\u2581"
    assert tok.convert_ids_to_tokens(encode_target(tok, " Nyvian"))[0] == "\u2581Ny"


def test_target_of_unknown_pieces_is_refused():
    tok = tiny_tokenizer("metaspace")
    unknown, words = tok.unk_token_id, encode_target(tok, " clockmaker")
    assert encode_target(tok, "京都 clockmaker") == [unknown, unknown, *words]  # no part of a target is left out
    with pytest.raises(UserError, match="the target '京' tokenises to nothing"):
        encode_target(tok, "京")


def test_pad_batch():
    rows = [[5, 6, 7], [8], [9, 4]]
    right, left = (pad_batch(rows, 0, side=side) for side in ("right", "left"))
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert right["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 0]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 4]]
    assert left["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    aligned = pad_batch(rows, 0, align=[2, 0, 0])
    assert aligned["input_ids"].tolist() == [[5, 6, 7, 0], [0, 0, 8, 0], [0, 0, 9, 4]]
    assert aligned["attention_mask"].tolist() == [[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert aligned["position_ids"].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert all(t.dtype == torch.long for t in aligned.values())
    with pytest.raises(ValueError, match="side"):
        pad_batch(rows, 0, side="up")


def test_requests_in_the_fields_form():
    request = {
        "case_id": 3, "prompt": "{} speaks", "subject": "Orla", "relation_id": "P1",
        "target_new": {"str": "Nyvian", "id": "Q1"}, "target_true": {"str": "Vellic", "id": "Q2"},
    }
    parsed = parse_requests([request, {"prompt": "{} is", "subject": "{}", "target_new": " Vellic"}], tiny_tokenizer())
    assert parsed[0] == Request("{} speaks", "Orla", " Nyvian", 3, "Vellic")
    assert parsed[1] == Request("{} is", "{}", " Vellic", None, None)
    assert parse_requests(parsed) == parsed
    assert request["target_new"] == {"str": "Nyvian", "id": "Q1"}


@pytest.mark.parametrize("change, message", [
    ({"prompt": "She speaks"}, r"request 1 \(case_id 8\): the prompt 'She speaks' has 0 '{}' and needs exactly one"),
    ({"prompt": "{} and {}"}, r"request 1 \(case_id 8\): the prompt '{} and {}' has 2"),
    ({"subject": "  "}, r"request 1 \(case_id 8\): the subject is empty"),
    ({"target_new": {"str": " "}}, r"request 1 \(case_id 8\): the target is empty"),
    ({"target_new": {"id": "Q1"}}, "target_new must be text, not None"),
    ({"subject": 5}, "subject must be text, not 5"), ({"target_true": 5}, "target_true must be text, not 5"),
    ({"true_prompt": 5}, "true_prompt must be text, not 5"), ({"true_subject": 5}, "true_subject must be text, not 5"),
])
def test_mistakes_in_requests(change, message):
    good = {"case_id": 8, "prompt": "{} speaks", "subject": "Orla", "target_new": {"str": "Nyvian"}}
    with pytest.raises(UserError, match=message) as error:
        parse_requests([good, {**good, **change}])
    assert "\n" not in str(error.value)


def test_requests_of_another_shape():
    with pytest.raises(UserError, match="must be a list of mappings, not one dict"):
        parse_requests({"prompt": "{} speaks"})
    with pytest.raises(UserError, match="must be a list of mappings, not one NoneType"):
        parse_requests(None)
    with pytest.raises(UserError, match=r"request 0 lacks subject, target_new"):
        parse_requests([{"prompt": "{} speaks"}])
    with pytest.raises(UserError, match="request 0 is a str, not a mapping"):
        parse_requests(["{} speaks"])


def published_positions(tok, prompt, subject):
    """Published counting: prefix, subject with the space before it, and suffix, each alone."""
    before, after = prompt.split("{}")
    if before:
        before, subject = before.removesuffix(" "), " " + subject
    first, middle, rest = (len(tok(text)["input_ids"]) for text in (before, subject, after))
    return {"subject_first": first, "subject_last": first + middle - 1, "subject_first_after_last": first + middle - (not rest)}


def test_real_prompts_with_gpt2s_own_tokenizer(realdata):
    tok = GPT2TokenizerFast.from_pretrained(realdata / "gpt2_tokenizer")
    rewrites = [record["requested_rewrite"] for record in json.loads((realdata / "counterfact_300.json").read_text())]
    known_facts = json.loads((realdata / "known_1000.json").read_text())
    facts = [(r["prompt"], r["subject"]) for r in rewrites] + [(k["template"], k["subject"]) for k in known_facts]
    facts = [(prompt, subject) for prompt, subject in facts if prompt.startswith("{}") or " {}" in prompt]
    assert len(facts) > 1000
    for fact_token in FACT_TOKENS[:3]:
        ours = [located.index for located in locate_all(tok, facts, fact_token)]
        assert ours == [published_positions(tok, *fact)[fact_token] for fact in facts]
