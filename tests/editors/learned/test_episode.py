"""Episodes: what each kind of model reads, and what is no episode."""

from dataclasses import dataclass

import pytest
import torch
from transformers import AutoTokenizer

from common.errors import UserError
from data.episodes import Example, Item
from editors.core.prompts import tokenize
from editors.learned.editable import shifted_right
from editors.learned.episode import Collator
from editors.learned.inner_params import default_inner_params
from editors.learned.model_kind import ModelKind, model_kind
from tests.editors.learned.conftest import LEARNED, learned_model
from tests.models import TOKENIZERS, tiny_tokenizer


@pytest.fixture(scope="module")
def tok():
    if not LEARNED.is_dir():
        pytest.skip("golden tokenizers are not beside this checkout")
    return {name: AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / name) for name in ("gpt", "s2s", "enc")}


QUESTION = Item(Example("Where does Anna live?", "Paris"), (Example("Anna's home is where?", "Paris"),))


def test_decoder(tok):
    item = Item(Example("Anna lives in", " Paris"), (Example("The home of Anna is", " Paris"), Example("Anna is in", " Paris")))
    episode = Collator(tok["gpt"], ModelKind.DECODER)([item], [Example("A text of no target.")])
    inner = episode.edit_inner
    n = len(tok["gpt"](" Paris").input_ids)
    assert (inner["labels"] != -100).sum() == n and inner["labels"][0, -n:].tolist() == tok["gpt"](" Paris").input_ids
    assert episode.pos_pairs.tolist() == [[0, 0], [1, 0]]
    outer = episode.edit_outer
    assert (outer["labels"][outer["attention_mask"] == 0] == -100).all() and (outer["labels"] != -100).sum() == 2 * n
    assert torch.equal(episode.loc["labels"], episode.loc["input_ids"])  # all of it is scored
    assert episode.cond["input_ids"].tolist() == [tok["gpt"]("Anna lives in Paris").input_ids]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_target_is_where_it_stands_in_the_text(kind):
    """Scored are the tokens behind the input, whatever the tokenizer puts in front of a text, behind it or at a seam."""
    tok, example = tiny_tokenizer(kind), Example("Tamsin works in the city of", " Lutmere")
    batch = Collator(tok, ModelKind.DECODER).batch([example])
    ids, offsets = tokenize(tok, ["Tamsin works in the city of Lutmere"])[0]
    assert batch["input_ids"][0].tolist() == ids  # no end of text, which a tokenizer may put there
    scored = [offsets[i] for i in (batch["labels"][0] != -100).nonzero()[:, 0].tolist()]
    assert scored[0][0] in (len(example.input), len(example.input) + 1) and scored[-1][1] == len(example.input + example.target)


def test_edits_may_end(tok):
    """With the end of text behind the targets of the edits, and of nothing else."""
    tok = tok["gpt"]
    item = Item(Example("Anna plays the", " drum"), (Example("She plays the", " drum"),))
    local = [Example("Bert plays the", " horn")]
    plain, ended = (Collator(tok, ModelKind.DECODER, ended=ended)([item], local) for ended in (False, True))
    assert all(torch.equal(plain.loc[name], ended.loc[name]) for name in plain.loc)
    for name in ("edit_inner", "edit_outer"):
        usual, more = getattr(plain, name), getattr(ended, name)
        for key in ("input_ids", "labels"):
            assert more[key][0].tolist() == [*usual[key][0].tolist(), tok.eos_token_id]


def test_beginnings_are_dropped(tok):
    text = Example("One two three four five six seven eight nine ten", scored=3)
    whole = Collator(tok["gpt"], ModelKind.DECODER)([Item(text, (text,))], [text])
    half = Collator(tok["gpt"], ModelKind.DECODER)([Item(text, (text,), drop=0.999)], [text])
    length = whole.edit_outer["input_ids"].shape[1]
    assert half.edit_outer["input_ids"].shape[1] == length - (length - 3) // 2
    assert (half.edit_outer["labels"] != -100).sum() == 3 and torch.equal(half.edit_inner["labels"], whole.edit_inner["labels"])


def test_longer_texts_lose_the_end_but_not_the_target(tok):
    long = Example("word " * 30 + "lives in", " Paris")
    n = len(tok["gpt"](" Paris").input_ids)
    batch = Collator(tok["gpt"], ModelKind.DECODER, max_length=8).batch([long])
    assert batch["input_ids"].shape[1] == 8 and batch["labels"][0, -n:].tolist() == tok["gpt"](" Paris").input_ids
    with pytest.raises(UserError, match="target"):
        Collator(tok["gpt"], ModelKind.DECODER, max_length=n).batch([long])


def test_sequence_to_sequence(tok):
    eos = tok["s2s"].eos_token_id
    t5 = Collator(tok["s2s"], ModelKind.T5).batch([QUESTION.edit])
    assert t5["labels"][0, -1] == eos and "decoder_input_ids" not in t5
    bart = Collator(tok["s2s"], ModelKind.BART).batch([QUESTION.edit])
    assert bart["decoder_input_ids"][0, 0] == eos and torch.equal(bart["decoder_input_ids"][:, 1:], bart["labels"][:, 1:])
    assert bart["labels"][0, 1:].tolist() == t5["labels"][0].tolist()  # the first is never scored
    blender = Collator(tok["s2s"], ModelKind.BLENDERBOT).batch([QUESTION.edit])
    assert torch.equal(blender["labels"], t5["labels"])
    config = learned_model("t5-tiny").config
    assert torch.equal(shifted_right(config, t5["labels"])[:, 1:], t5["labels"][:, :-1])
    published = Collator(tok["s2s"], ModelKind.BLENDERBOT, unshifted_decoder=True).batch([QUESTION.edit])
    assert torch.equal(published["decoder_input_ids"], published["labels"])


def test_classifier(tok):
    claim = Item(Example("Anna lives in Paris.", label=1), ())
    episode = Collator(tok["enc"], ModelKind.CLASSIFIER)([claim], [Example("Bob lives in Rome.", label=0)])
    assert episode.edit_outer is None and episode.edit_inner["labels"].tolist() == [[1]] and episode.pos_pairs.shape == (0, 2)
    assert episode.edit_inner["input_ids"][0, 0] == tok["enc"].cls_token_id


@dataclass
class Bad:
    input: str = "x"
    target: str | None = None
    label: int | None = None
    scored: int | None = None


@pytest.mark.parametrize(
    "kind, name, example, message",
    [
        (ModelKind.DECODER, "gpt", Bad(" "), "input is empty"),
        (ModelKind.DECODER, "gpt", Bad("Anna is", ""), "target"),
        (ModelKind.DECODER, "gpt", Bad("Anna", scored=9), "target"),
        (ModelKind.T5, "s2s", Bad("Who?"), "need a target"),
        (ModelKind.CLASSIFIER, "enc", Bad("A claim."), "label"),
        (ModelKind.CLASSIFIER, "enc", Bad("A claim.", label=2), "label"),
    ],
)
def test_malformed_examples(tok, kind, name, example, message):
    with pytest.raises(UserError, match=message) as error:
        Collator(tok[name], kind)([Item(example, (example,))], [example])
    assert "\n" not in str(error.value)


def test_empty_episodes(tok):
    collate = Collator(tok["s2s"], ModelKind.T5)
    for items, local in (([], [QUESTION.edit]), ([QUESTION], [])):
        with pytest.raises(UserError, match="at least one edit and one unrelated"):
            collate(items, local)


@pytest.mark.parametrize(
    "name, kind, weights",
    [
        ("gpt2-tiny", ModelKind.DECODER, 6),
        ("t5-tiny", ModelKind.T5, 8),
        ("bart-tiny", ModelKind.BART, 8),
        ("blender-tiny", ModelKind.BLENDERBOT, 8),
        ("bert-tiny", ModelKind.CLASSIFIER, 4),
    ],
)
def test_kinds_and_their_feed_forward_weights(name, kind, weights):
    model = learned_model(name)
    names = default_inner_params(model)
    assert (
        model_kind(model) is kind and len(names) == weights and not any("attn" in n or "attention" in n.lower() for n in names)
    )


def test_models_without_a_head_are_refused():
    with pytest.raises(UserError, match="no language-model head"):
        model_kind(learned_model("gpt2-tiny").transformer)
