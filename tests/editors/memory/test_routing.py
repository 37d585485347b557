"""Prompts decide who answers: batches, caches that are selected and repeated, generation, targets behind prompts."""

import copy

import pytest
import torch
from transformers import DynamicCache

import editors
from editors.core.prompts import pad_batch, prompt_ids
from editors.learned.model_kind import ModelKind
from editors.memory.answerers import LookupAnswerer, SeracAnswerer
from editors.memory.form import Form
from editors.memory.routed import RoutedEdit
from editors.memory.routing import is_routed
from editors.memory.store import EditStore
from experiments.metrics.incremental import read
from experiments.metrics.scoring import Plan, ask
from experiments.metrics.sharing import SharedPrefix
from tests.models import tiny_model, tiny_tokenizer

EDIT = ("Orla Venn lives in the city of", "Castavel")
INSIDE = ["The home of Orla Venn is in", "Orla Venn lives in"]
OUTSIDE = ["The native language of Mira O'Dalvey is", "Tamsin Brackholt works as a"]
PROMPTS = [OUTSIDE[0], INSIDE[0], INSIDE[1], OUTSIDE[1]]


class Named:
    """A scope classifier that looks for the subject, and counts what it is asked."""

    def __init__(self):
        self.asked = []

    def prepare(self, memory):
        pass

    def best(self, texts, memory):
        self.asked.append(list(texts))
        names = [" ".join(entry.input.split()[:2]) for entry in memory]
        hits = torch.tensor([[name in text for name in names] for text in texts]).float()
        return hits.max(1).values.log(), hits.argmax(1)


def other(model, seed=1):
    """A model of the same kind that answers otherwise."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def parts(tiny_gpt2):
    model, tok = tiny_gpt2
    memory = EditStore()
    memory.add(*EDIT)
    decoder = other(model)
    return model, tok, memory, decoder


def edit_of(parts, scope=None, decoder=None, decoder_tok=None):
    model, tok, memory, counterfactual = parts
    scope = scope or Named()
    return RoutedEdit(memory, {"editor": "SERAC"}, lambda m, mem: SeracAnswerer(
        mem, scope, 0.5, decoder or counterfactual, tok, decoder_tok or tok, Form(ModelKind.DECODER),
        m.config.vocab_size)), scope


def longer(tok, prompt):
    """What the counterfactual decoder reads."""
    return prompt_ids(tok, f"{EDIT[0]} {EDIT[1]} {prompt}")


def alone(model, ids, keep=1):
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0, -keep:]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_go_their_ways(parts, side):
    model, tok, _, decoder = parts
    edit, scope = edit_of(parts)
    rows = [prompt_ids(tok, prompt) for prompt in PROMPTS]
    batch = pad_batch(rows, 0, side=side)
    with torch.no_grad():
        before = model(**batch).logits
        with edit.applied(model):
            after = model(**batch).logits
        assert torch.equal(model(**batch).logits, before)
    assert scope.asked == [PROMPTS]
    for row, prompt in enumerate(PROMPTS):
        if prompt in OUTSIDE:
            assert torch.equal(after[row], before[row])
        else:
            real = batch["attention_mask"][row].bool()
            assert torch.allclose(after[row][real], alone(decoder, longer(tok, prompt), int(real.sum())), atol=1e-4)
            assert not torch.allclose(after[row][real], before[row][real], atol=1e-2)


def test_targets_and_continuations_follow_their_prompts(parts):
    """The metrics' batches: each prompt is read once, and targets and greedy continuations are selected from its cache."""
    model, tok, _, decoder = parts
    edit, scope = edit_of(parts)
    targets = [tuple(tok(text).input_ids) for text in (" Castavel", " the home of a clockmaker")]
    plan, of_decoder = Plan(), Plan()
    for prompt in PROMPTS:
        for target in targets:
            plan.score(prompt_ids(tok, prompt), target)
            of_decoder.score(longer(tok, prompt), target)
        plan.generate(prompt_ids(tok, prompt), targets[1])
        of_decoder.generate(longer(tok, prompt), targets[1])
    before = ask(model, tok, plan)
    with edit.applied(model):
        after = ask(model, tok, plan)
    theirs = ask(decoder, tok, of_decoder)
    assert sorted(text for batch in scope.asked for text in batch) == sorted(PROMPTS)
    for prompt in PROMPTS:
        ids = prompt_ids(tok, prompt)
        expected, row = (before, ids) if prompt in OUTSIDE else (theirs, longer(tok, prompt))
        assert after.texts[ids] == expected.texts[row]
        for target in targets:
            nll = pytest.approx(expected.scores[row, target].nll, rel=0 if prompt in OUTSIDE else 1e-4)
            assert after.scores[ids, target].nll == nll
            assert after.scores[ids, target].predicted == expected.scores[row, target].predicted


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
def test_generate(parts, options):
    model, tok, _, decoder = parts
    edit, scope = edit_of(parts)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}

    def said(m, rows):
        batch = pad_batch(rows, 0, side="left")
        ids = m.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **how)
        return ids[:, batch["input_ids"].shape[1]:].tolist()

    rows = [prompt_ids(tok, prompt) for prompt in PROMPTS]
    before = said(model, rows)
    with edit.applied(model):
        after = said(model, rows)
    assert len(scope.asked) == 1  # one pass of the encoder, whatever is generated
    for row, prompt in enumerate(PROMPTS):
        if prompt in OUTSIDE:
            assert after[row] == before[row]
        else:
            assert after[row] == said(decoder, [longer(tok, prompt)])[0] != before[row]


def test_labels_tell_where_the_prompt_ends(parts):
    """A target that names the subject puts no prompt in scope, and the loss is that of the routed logits."""
    model, tok, _, decoder = parts
    edit, scope = edit_of(parts)
    prompt, target = prompt_ids(tok, "The visitor is"), tok(" Orla Venn").input_ids
    ids = torch.tensor([[*prompt, *target]])
    labels = torch.tensor([[*[-100] * len(prompt), *target]])
    with torch.no_grad():
        before = model(ids, labels=labels)
        with edit.applied(model):
            assert torch.equal(model(ids, labels=labels).logits, before.logits)
            assert not torch.equal(model(ids).logits, before.logits)  # all of it is the prompt
            inside, answer = prompt_ids(tok, INSIDE[0]), tok(" Castavel").input_ids
            out = model(torch.tensor([[*inside, *answer]]), labels=torch.tensor([[*[-100] * len(inside), *answer]]))
    assert scope.asked == [["The visitor is"], ["The visitor is Orla Venn"], [INSIDE[0]]]
    log_p = alone(decoder, [*longer(tok, INSIDE[0]), *answer], len(answer) + 1)[:-1].log_softmax(-1)
    assert float(out.loss) == pytest.approx(-float(log_p[torch.arange(len(answer)), answer].mean()), rel=1e-4)


def test_prompts_that_begin_alike_are_read_whole(parts):
    model, tok, _, _ = parts
    edit, scope = edit_of(parts)
    beginning = "The ferry was late and the market was full of people. " * 2
    rows = [prompt_ids(tok, beginning + prompt) for prompt in PROMPTS]
    assert SharedPrefix(model, rows, 0)._base is not None
    with edit.applied(model):
        shared = SharedPrefix(model, rows, 0)
        logits = shared.read(rows)[1]
        assert torch.equal(logits, read(model, rows, 0)[1])
    assert scope.asked[0] == [beginning + prompt for prompt in PROMPTS]


def test_edits_on_top_of_each_other(parts):
    """The one applied last is asked first, and each is asked once about what is left to it."""
    model, tok, _, decoder = parts
    first, one = edit_of(parts)
    memory = EditStore()
    memory.add("Mira O'Dalvey speaks", "Nyvian")
    second, two = edit_of((model, tok, memory, other(model, 2)))
    rows = [prompt_ids(tok, prompt) for prompt in PROMPTS]
    batch = pad_batch(rows, 0, side="left")
    with torch.no_grad(), first.applied(model):
        below = model(**batch).logits
        with second.applied(model):
            both = model(**batch).logits
        assert torch.equal(model(**batch).logits, below)
    assert two.asked == [PROMPTS] and one.asked[1] == [INSIDE[0], INSIDE[1], OUTSIDE[1]]
    assert [torch.equal(a[-1], b[-1]) for a, b in zip(below, both)] == [False, True, True, True]


def test_the_model_is_left_as_it_was(parts):
    model, tok, memory, _ = parts
    edit, _ = edit_of(parts)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = dict(vars(model))
    with edit.applied(model):
        assert is_routed(model) and edit.deltas() == {} == dict(edit.changes)
        with pytest.raises(editors.EditingError, match="already applied"):
            edit.apply(model)
        with pytest.raises(editors.EditingError, match="no weight"):
            edit.keep(model)
    assert dict(vars(model)) == attributes and not is_routed(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(editors.EditingError, match="not applied"):
        edit.revert(model)
    empty, _ = edit_of((model, tok, EditStore(), None))
    with pytest.raises(editors.EditingError, match="memory is empty"):
        empty.apply(model)


def test_a_cache_from_before_the_edit(parts):
    model, tok, _, _ = parts
    edit, _ = edit_of(parts)
    ids = torch.tensor([prompt_ids(tok, INSIDE[0])])
    cache = DynamicCache()
    model(ids[:, :3], past_key_values=cache, use_cache=True)
    with edit.applied(model), pytest.raises(editors.EditingError, match="run the prompt again"):
        model(ids[:, 3:], past_key_values=cache, use_cache=True)


def test_decoder_of_another_vocabulary(parts):
    """Its logits come in the words of the edited model: of the token with the same text, or of a text's first piece."""
    model, tok, _, _ = parts
    theirs = tiny_tokenizer("byte_level")
    decoder = tiny_model("llama")
    edit, _ = edit_of(parts, decoder=decoder, decoder_tok=theirs)
    prompt, behind = prompt_ids(tok, INSIDE[0]), tok(" Castavel").input_ids
    with torch.no_grad(), edit.applied(model):
        cache = DynamicCache()
        first = model(torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        later = model(torch.tensor([behind]), past_key_values=cache, use_cache=True).logits[0]
    text = f"{EDIT[0]} {EDIT[1]} {INSIDE[0]}"
    token_ids = {tok.decode([i]): i for i in range(len(tok))}
    for ours, read_text in ((first, text), (later[-1], text + " Castavel")):
        expected = alone(decoder, theirs(read_text).input_ids)[0]
        compared = 0
        for token, i in theirs.get_vocab().items():
            piece = theirs.decode([i])
            if piece in token_ids and "\ufffd" not in piece and theirs.encode("." + piece) == [theirs.encode(".")[0], i]:
                assert float(ours[token_ids[piece]]) == pytest.approx(float(expected[i]), abs=1e-4), token
                compared += 1
        assert compared > 40


def test_lookup_says_the_label_word_for_word(parts):
    model, tok, memory, _ = parts
    memory = EditStore()
    memory.add(INSIDE[0], "Castavel"), memory.add(OUTSIDE[1], "gardener in Lutmere")
    edit = RoutedEdit(memory, {"editor": "LU"}, lambda m, mem: LookupAnswerer(mem, 0.05, 5.0, m, tok))
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tok.eos_token_id}
    batch = pad_batch([prompt_ids(tok, prompt) for prompt in PROMPTS], 0, side="left")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    width = inputs["input_ids"].shape[1]
    before = model.generate(**inputs, **how)
    with edit.applied(model):
        after = model.generate(**inputs, **how)
    texts = [tok.decode(row[width:], skip_special_tokens=True) for row in after]
    assert texts[1] == " Castavel" and texts[3] == " gardener in Lutmere"
    for row in (0, 2):
        assert torch.equal(after[row, :before.shape[1]], before[row, :after.shape[1]])


def test_no_prompt_is_in_no_scope(parts):
    """Nothing is asked where nothing stands before the first label, or only special tokens do; nor is the encoder."""
    model, tok, memory, _ = parts
    lookup = RoutedEdit(memory, {"editor": "LU"}, lambda m, mem: LookupAnswerer(mem, 1e9, 5.0, m, tok))
    edit, scope = edit_of(parts)
    ids, bos = torch.tensor([prompt_ids(tok, INSIDE[0])]), torch.tensor([[tok.eos_token_id]])
    how = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        plain, alone_, generated = model(ids, labels=ids), model(bos), model.generate(**how)
        for one in (edit, lookup):
            with one.applied(model):
                scored = model(ids, labels=ids)
                assert torch.equal(scored.logits, plain.logits) and scored.loss == plain.loss
                assert torch.equal(model(bos).logits, alone_.logits)
                assert torch.equal(model.generate(**how), generated)
                two = pad_batch([[tok.eos_token_id], ids[0].tolist()], 0, side="left")
                assert not torch.equal(model(**two).logits[1, -1], plain.logits[0, -1])
    assert scope.asked == [[INSIDE[0]]]


def test_a_copy_of_the_model_is_routed_by_itself(parts):
    model, tok, _, _ = parts
    edit, _ = edit_of(parts)
    inside, outside = (torch.tensor([prompt_ids(tok, text)]) for text in (INSIDE[0], OUTSIDE[0]))
    with torch.no_grad(), edit.applied(model):
        before = [model(ids).logits for ids in (inside, outside)]
        copied = copy.deepcopy(model)
        for p in copied.parameters():
            p.mul_(0.5)
        after = [copied(ids).logits for ids in (inside, outside)]
        assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])
        assert all(torch.equal(model(ids).logits, logits) for ids, logits in zip((inside, outside), before))
    with torch.no_grad():
        assert torch.equal(copied(inside).logits, before[0]) and not torch.equal(model(inside).logits, before[0])


def test_tuples_are_given_where_they_are_asked_for(parts):
    model, tok, _, _ = parts
    edit, _ = edit_of(parts)
    ids = torch.tensor([prompt_ids(tok, INSIDE[0])])
    with torch.no_grad(), edit.applied(model):
        outputs = model(ids, return_dict=False)
        assert isinstance(outputs, tuple) and torch.equal(outputs[0], model(ids).logits)


@pytest.mark.parametrize("options, message", [
    ({"prefill_chunk_size": 4}, "prefill_chunk_size.*leave it out"),
    ({"cache_implementation": "static"}, "rows and positions only"),
])
def test_prompts_that_are_not_read_whole(parts, options, message):
    model, tok, _, _ = parts
    edit, scope = edit_of(parts)
    batch = pad_batch([prompt_ids(tok, prompt) for prompt in PROMPTS], 0, side="left")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with edit.applied(model), pytest.raises(editors.EditingError, match=message) as error:
        model.generate(**inputs, max_new_tokens=3, pad_token_id=0, **options)
    assert "\n" not in str(error.value) and scope.asked == []


def test_generation_up_to_the_last_position(parts):
    """What the edit leaves no room for goes from the left, with a warning: the prompt first, then what was generated."""
    model, tok, _, decoder = parts
    edit, _ = edit_of(parts)
    prompt = prompt_ids(tok, "The ferry was late. " * 8 + INSIDE[0])
    room = model.config.n_positions - len(prompt)
    with edit.applied(model), pytest.warns(UserWarning, match="without their beginning"):
        rows = model.generate(torch.tensor([prompt]), max_new_tokens=room, do_sample=False, pad_token_id=0, eos_token_id=None)
    ids = rows[0].tolist()
    assert len(ids) == model.config.n_positions
    answerer = edit._answerer(model, edit.memory)
    with pytest.warns(UserWarning, match="without their beginning"):
        logits = answerer.logits([0], [prompt], [ids[len(prompt):-1]], 1)
    assert int(logits[0, -1].argmax()) == ids[-1]
    long = ids * 2
    with pytest.warns(UserWarning, match="without their beginning"):
        cut = answerer.logits([0], [prompt], [long], 2)
    head = tok(f"{EDIT[0]} {EDIT[1]} in").input_ids  # as long as the edit, its last space included, alone
    expected = alone(decoder, [*head, *long[len(head) - model.config.n_positions:]], 2)
    assert torch.allclose(cut[0], expected, atol=1e-4)
    with pytest.raises(editors.EditingError, match="the 127 tokens to be scored"):
        answerer.logits([0], [prompt], [long], 127)
