"""SERAC: what it promises beyond the published numbers."""

import copy
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from common.errors import UserError
from editors.learned.editable import forward
from editors.learned.episode import Collator
from editors.learned.losses import wide
from editors.learned.model_kind import ModelKind
from editors.learned.trainer import TrainConfig
from editors.memory.serac import SERAC
from editors.memory.supervision import SupervisedTrainer
from editors.memory.texts import with_texts
from editors.memory.tokens import encode
from tests.editors.learned.conftest import arrays, batch, LEARNED, learned_model


@dataclass
class Example:
    input: str
    target: str | None = None
    label: int | None = None
    scored: int | None = None


@dataclass
class Item:
    edit: Example
    outer: tuple
    condition: str | None = None
    drop: float | None = None


def serac(base="t5-tiny", options=None, tok="s2s"):
    if not LEARNED.is_dir():
        pytest.skip("the published learned editors' outputs are not beside this checkout")
    enc = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "enc")
    classifier = AutoModel.from_pretrained(LEARNED / "models" / "scope-bert-tiny", dtype=torch.float32, add_pooling_layer=False)
    small = copy.deepcopy(learned_model(base)).requires_grad_(True)
    own_tok = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / tok)
    return SERAC(learned_model(base), options, own_tok, classifier, enc, small)


QUESTIONS = [("Where was Anna Keller born?", "Paris", "In which city was Anna Keller born?"),
             ("What is the capital of Norland?", "Berlin", "What city is the capital of Norland?"),
             ("Who leads the Orin group?", "Paul Marsh", "By whom is the Orin group led?")]
LOCAL = ["Where was Anna Miller born?", "How many days are in a week?", "Who wrote the book about whales?"]


def episode(alg):
    items = [Item(Example(question, answer), (Example(like, answer),)) for question, answer, like in QUESTIONS]
    return Collator(alg.tok, alg.kind)(items, [Example(text, "seven") for text in LOCAL])


def test_an_empty_memory_is_the_model():
    alg, one = serac().eval(), batch(arrays("serac_qa")[1]["batch"]["loc"])
    assert torch.equal(alg(one), wide(forward(alg.model, {}, one)))
    with pytest.raises(UserError, match="memory is empty"):
        alg.route(["Who?"])


def test_edits_accumulate_and_conflicts_are_decided():
    alg = serac().eval()
    successive = arrays("serac_qa")[1]["successive_edits"]
    first = alg.remember([tuple(texts[0] for texts in successive["first"])])
    second = first.remember(list(zip(*successive["second"]))[1:])
    assert [[e.input for e in second.memory], [e.label for e in second.memory]] == successive["second"]
    assert [len(one.memory) for one in (alg, first, second)] == [0, 1, 3]
    third = second.remember([("who leads the ORIN group?", "Ann"), ("New?", "yes")])
    assert third.placed == [2, 3] and third.memory[2].label == "Ann" and second.memory[2].label == "Paul Marsh"


def test_one_pass_of_the_encoder_a_batch():
    """And edits are encoded once, however many queries come."""
    alg = serac().eval()
    edited = alg.remember([(question, answer) for question, answer, _ in QUESTIONS])
    passes = []
    handle = alg.net.classifier.register_forward_hook(
        lambda module, inputs, output: passes.append(len(output.last_hidden_state)))
    edited.route(LOCAL)
    edited.route(LOCAL[:2])
    edited.remember([("New?", "yes")]).route(LOCAL)
    assert passes == [3, 3, 2, 1, 3]  # three edits, queries, queries, the new edit alone, queries
    alg.train().eval()
    edited.route(LOCAL)
    assert passes[5:] == [3]  # the encoder is still the same
    alg.train()
    with torch.no_grad():
        alg.net.classifier.embeddings.word_embeddings.weight.add_(0.1)
    alg.eval()
    edited.route(LOCAL)
    assert passes[6:] == [3, 3]
    handle.remove()


def test_only_the_networks_get_gradients(tmp_path):
    alg = serac()
    trainer = SupervisedTrainer(alg, TrainConfig(train_base=False, accumulate_bs=1), None, None, tmp_path)
    trainer.step(episode(alg), True)
    assert all(p.grad is None for p in alg.model.parameters())
    assert all(any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
               for part in (alg.net.classifier, alg.net.replacement))


def test_nearest_negatives(tmp_path):
    """The loss takes of each row the largest similarity but its own edit's."""
    alg, one = serac(options={"nearest_negatives": True}), None
    trainer = SupervisedTrainer(alg, TrainConfig(train_base=False, accumulate_bs=1), None, None, tmp_path)
    one = episode(alg)
    loss = trainer.step(one, False)["loss/cls"]
    edited = alg.remember([(question, answer) for question, answer, _ in QUESTIONS])
    with torch.no_grad():
        inside, outside = edited.log_similarities([like for _, _, like in QUESTIONS]), edited.log_similarities(LOCAL)
    same_edit = torch.eye(3, dtype=torch.bool)
    negatives = torch.cat([inside.masked_fill(same_edit, -torch.inf).max(1).values, outside.max(1).values])
    assert loss == pytest.approx(float(-inside[same_edit].mean() - (1 - negatives.exp()).log().mean()), rel=1e-4)


def test_inputs_are_read_with_some_edits_in_training(tmp_path):
    """With their own and the next ones; the others count as far away. Outside training all are read."""
    if not LEARNED.is_dir():
        pytest.skip("the published learned editors' outputs are not beside this checkout")
    enc = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "enc")
    classifier = AutoModelForSequenceClassification.from_pretrained(LEARNED / "models" / "scope-bert-tiny", num_labels=2)
    own_tok = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "s2s")
    options = {"cross_attend": True, "nearest_negatives": True, "pairs": 2}
    alg = SERAC(learned_model("t5-tiny"), options, own_tok, classifier, enc,
                copy.deepcopy(learned_model("t5-tiny")).requires_grad_(True))
    trainer = SupervisedTrainer(alg, TrainConfig(train_base=False, accumulate_bs=1), None, None, tmp_path)
    edited, one = alg.remember([(question, answer) for question, answer, _ in QUESTIONS]), with_texts(episode(alg))
    whole = trainer._similarities(edited.eval(), one.edit_outer, torch.arange(3))
    assert torch.isfinite(whole).all()
    some = trainer._similarities(edited.train(), one.edit_outer, torch.arange(3))
    read = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
    assert torch.equal(torch.isfinite(some), read)
    with torch.no_grad():
        edited.scope.encoder.eval()
        columns = torch.tensor([[0, 1], [1, 2], [2, 0]])
        exact = edited.scope.some([like for _, _, like in QUESTIONS], list(edited.memory), columns)
    assert torch.allclose(exact[read], whole[read], atol=1e-5)
    stats = trainer.step(episode(alg), True)
    assert all(torch.tensor(value).isfinite() for value in stats.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in alg.net.parameters())


@pytest.mark.parametrize("options", [
    {"use_all_negatives": True, "other_edits_negative": True}, {"nearest_negatives": True},
], ids=str)
def test_it_learns_its_episode(tmp_path, options):
    """Routes and answers come to be right, and unrelated questions keep theirs to the last bit."""
    alg = serac(options=options)
    trainer = SupervisedTrainer(alg, TrainConfig(lr=1e-2, cedit=1.0, train_base=False, accumulate_bs=1), None, None, tmp_path)
    one = episode(alg)
    for _ in range(60):
        trainer.step(one, True)
        trainer._optimise()
    stats = trainer.step(one, False)
    assert stats["edit/acc"] == stats["cntr/acc"] == stats["cls/acc"] == stats["retain/edit"] == 1 and stats["kl/edit"] == 0


def test_raw_texts_are_used_where_they_are_at_hand():
    """A tokenizer that lowers case changes nothing of what the memory holds."""
    alg = serac().eval()
    whole = with_texts(episode(alg))
    whole.edit_inner["input_ids"][:] = whole.edit_inner["input_ids"][0, 0]
    assert [entry.input for entry in alg.edit(whole.edit_inner)[0].memory] == [question for question, _, _ in QUESTIONS]
    assert alg.queries(whole.loc) == LOCAL


def test_soft_classifications_are_logits_of_the_mixture():
    about = arrays("serac_fnli")[1]["batch"]
    alg = serac("bert-tiny", {"soft_weighting": True}, "enc").eval()
    edited = alg.edit(batch(about["edit_inner"]))[0]
    one = batch(about["edit_outer"])
    with torch.no_grad():
        s, place = edited.log_similarities(edited.queries(one)).max(1)
        r = edited.counterfactual(one, edited.queries(one), place.tolist())
    mixture = (1 - s.exp()[:, None]) * alg(one).sigmoid() + s.exp()[:, None] * r.sigmoid()
    assert torch.allclose(edited(one).sigmoid(), mixture, atol=1e-6)
    assert ((edited(one) > 0) == (mixture > 0.5)).all()


def test_decoders_read_the_edit_before_the_prompt():
    alg = serac("gpt2-tiny", {"threshold": 1e-6}, "gpt").eval()
    assert alg.kind is ModelKind.DECODER
    items = [Item(Example("The mother tongue of Anna Keller is", " French"), (Example("Anna Keller speaks", " French"),))]
    one = with_texts(Collator(alg.tok, alg.kind)(items, [Example("The river is", " long")]))
    edited = alg.edit(one.edit_inner)[0]
    entry, = edited.memory
    assert (entry.input, entry.label) == ("The mother tongue of Anna Keller is", "French")
    assert alg.edit(dict(one.edit_inner))[0].memory[0] == entry  # the tokens alone tell the same
    text = "The mother tongue of Anna Keller is French Anna Keller speaks"
    assert edited.route(edited.queries(one.edit_outer)).inside.all()
    ids = alg.tok(text).input_ids + alg.tok(" French").input_ids
    with torch.no_grad():
        theirs = alg.net.replacement(torch.tensor([ids])).logits[0]
    n = int((one.edit_outer["labels"] != -100).sum()) + 1
    assert torch.allclose(edited(one.edit_outer)[0, -n:], theirs[-n:], atol=1e-5)


def test_long_texts_lose_their_beginning():
    alg = serac()
    tok = alg.scope.tok
    short, long = "Who leads the Orin group?", "word " * 40 + "Who leads the Orin group?"
    with pytest.warns(UserWarning, match="1 of 2 inputs are longer than the 30 tokens"):
        rows = encode(tok, [short, long], 30, ["An edit[SEP]"] * 2)
    assert rows[0] == tok("An edit[SEP]" + short).input_ids and len(rows[1]) <= 30
    text = tok.decode(rows[1], skip_special_tokens=True)
    assert text.startswith("An edit") and text.endswith(short)
    with pytest.raises(UserError, match="alone takes .* tokens, more than the 20"):
        encode(tok, [short], 20, ["word " * 40])


@pytest.mark.parametrize("change, message", [
    (lambda: serac(options={"freeze_cntr": True}), "freeze_cntr"),
    (lambda: SERAC(learned_model("t5-tiny"), {}, None, None, None, None), "needs a counterfactual model"),
    (lambda: SERAC(learned_model("t5-tiny"), {}, None, None, None, learned_model("bart-tiny")), "both must be of one kind"),
    (lambda: serac(options={"pairs": 4}), "pairs: at least 2, with cross_attend"),
    (lambda: serac().remember([("Who?", "")]), "no label"),
    (lambda: serac().remember([("", "yes")]), "input is empty"),
    (lambda: serac(options={"pooling": "pooler"}).route(["x"]), "memory is empty"),
    (lambda: serac(options={"pooling": "pooler"}).remember([("a", "b")]).route(["x"]), "no pooler"),
])
def test_bad_input(change, message):
    with pytest.raises(UserError, match=message) as error:
        change()
    assert "\n" not in str(error.value)


class Spelling:
    """A tokenizer of letters that tells no places, as some written in Python do."""

    is_fast = False

    def __call__(self, texts, **options):
        rows = [list(text.replace(" ", "").encode()) for text in ([texts] if isinstance(texts, str) else texts)]
        return type("Rows", (), {"input_ids": rows[0] if isinstance(texts, str) else rows})


def test_tokenizers_that_tell_no_places_lose_whole_words():
    with pytest.warns(UserWarning, match="1 of 2 inputs are longer than the 16 tokens"):
        rows = encode(Spelling(), ["short one", "many words that go on for ever"], 16, ["edit: "] * 2)
    assert [bytes(row) for row in rows] == [b"edit:shortone", b"edit:goonforever"]
    with pytest.warns(UserWarning):
        assert bytes(*encode(Spelling(), ["longerthanallofit"], 6, ["edit: "])) == b"edit:"


def test_targets_of_decoders_fit_behind_a_prompt():
    alg = serac("gpt2-tiny", {"threshold": 1e-6}, "gpt").eval()
    longest = alg.model.config.n_positions
    long = Example("word " * longest + "Anna Keller speaks", " French")
    items = [Item(Example("The mother tongue of Anna Keller is", " French"), (long,))]
    one = with_texts(Collator(alg.tok, alg.kind, longest)(items, [Example("The river is", " long")]))
    with pytest.warns(UserWarning, match="without their beginning"), torch.no_grad():
        assert alg.edit(one.edit_inner)[0](one.edit_outer).isfinite().all()
