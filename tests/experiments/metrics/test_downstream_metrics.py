"""Downstream tasks: prompts to the byte, batched read-outs against a plain loop, answers, room for shots, figures."""

import math

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, tiny_model, tiny_tokenizer
from sklearn.metrics import f1_score, matthews_corrcoef

from common.errors import UserError
from data.downstream import TASKS, Example, load
from editors.core.prompts import prompt_ids
from experiments.metrics import classification, incremental
from experiments.metrics.classification import bootstrap, confusion, f1, figures, mcc, wilson
from experiments.metrics.downstream import choose, downstream_metrics, FORMS, make_questions, parse, read_answers
from experiments.metrics.sharing import SharedPrefix

PAIR = {"sentence1": "One {x}.", "sentence2": "Two."}
DIALOGUE = {"article": "f : why ?", "options": ("w", "x", "y", "z")}
MMLU = {"question": "Why?", "options": ("w", "x", "y", "z")}
SENTIMENT = ("For each snippet of text,label the sentiment of the text as positive or negative.The answer should be exact "
             "'positive' or 'negative'. text: a fine film .  answer:")
# task: fields, class as in the data, the question, and the shot (with the right answer)
PROMPTS = {
    "sst": ({"sentence": "a fine film . "}, 1, "Review :a fine film . \nSentiment :",
            "Review : a fine film . \nSentiment : positive\n"),
    "mrpc": (PAIR, 0, "Are the sentences paraphrases of each other.\nSentence 1: One {x}.\nSentence 2: Two.\nAnswer:",
             "Are the sentences paraphrases of each other.\nSentence 1: One {x}.\nSentence 2: Two.\nAnswer: No\n"),
    "cola": ({"sentence": "He goed."}, 0, "Is this sentence linguistically acceptable?\nSentence: He goed.\nAnswer: ",
             "Is this sentence linguistically acceptable?\nSentence: He goed.\nAnswer: No\n"),
    "rte": (PAIR, 0, "One {x}.\nquestion: Two. True or False?\nanswer:",
            "One {x}.\nquestion: Two. True or False?\nanswer: True\n"),
    "nli": (PAIR, 1, "One {x}. entails the Two. True or False? Answer:",
            "One {x}. entails the Two. True or False? Answer: True\n"),
    "sentiment_analysis": ({"sentence": "a fine film . "}, 0, SENTIMENT, SENTIMENT + " negative\n"),
    "dialogue": (DIALOGUE, 1, "Q: Given the following: f : why ?\nWhich choice is correct?\n(A)w\n(B)x\n(C)y\n(D)z\nAnswer:",
                 "Q: Given the following: f : why ?\nWhich choice is correct?\n(A)w\n(B)x\n(C)y\n(D)z\nAnswer: B\n\n"),
    "mmlu": (MMLU, 3, "Question: Why?\n(A) w\n(B) x\n(C) y\n(D) z\nAnswer:",
             "Question: Why?\n(A) w\n(B) x\n(C) y\n(D) z\nAnswer: D\n"),
}


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model("gpt2", n_positions=1024)


def questions_of(model, tok, task, shots, tests, gen_len=3, legacy=False):
    """As :func:`downstream_metrics` asks them."""
    def answered(examples):
        return [(e, 1 - e.label if task == "rte" and not legacy else e.label) for e in examples]
    return make_questions(model, tok, task, answered(shots), answered(tests), gen_len)


@pytest.mark.parametrize("task", FORMS)
def test_prompts_to_the_byte(task, gpt2):
    assert FORMS.keys() == PROMPTS.keys() == TASKS.keys()
    fields, label, question, shot = PROMPTS[task]
    example, tok = Example(fields, label), tiny_tokenizer()
    for shots in (0, 1, 2):
        results, (output,) = downstream_metrics(gpt2, tok, task, [example] * shots, [example], gen_len=1)
        assert output["input_prompt"] == shot * shots + question
        assert results["shots"] == [shots, shots] and output["shots"] == shots
    assert {f"prob_{word.lower()}" for word in FORMS[task].words} <= output.keys()
    assert len(FORMS[task].words) == len(TASKS[task].labels)


def test_legacy_rte_labels(gpt2):
    fields, label, question, shot = PROMPTS["rte"]
    run = [downstream_metrics(gpt2, tiny_tokenizer(), "rte", [Example(fields, label)], [Example(fields, label)],
                              legacy_rte_labels=legacy)[1][0] for legacy in (False, True)]
    assert [output["true_answer"] for output in run] == ["True", "False"]
    assert run[1]["input_prompt"] == shot.replace("answer: True", "answer: False") + question
    fields, label, question, shot = PROMPTS["nli"]
    _, (output,) = downstream_metrics(gpt2, tiny_tokenizer(), "nli", [], [Example(fields, label)], legacy_rte_labels=True)
    assert output["true_answer"] == "True"


# ---- both read-outs against one example at a time, without cache, padding or sharing

def plain(model, tok, prompt: str, words, gen_len: int):
    ids = list(prompt_ids(tok, prompt))
    new, before = [], tok.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    while len(new) < gen_len and new[-1:] != [tok.eos_token_id]:
        with torch.no_grad():
            new.append(model(torch.tensor([ids + new])).logits[0, -1].argmax().item())
    after = tok.decode(ids + new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    probs = []
    for word in words:
        whole = list(prompt_ids(tok, prompt + " " + word))
        with torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        behind = range(len(ids), len(whole))
        probs.append(math.exp(sum(logs[i - 1, whole[i]].item() for i in behind) / len(behind)))
    return after.removeprefix(before), probs


def check_against_plain(model, tok, task, shots, tests, gen_len=3):
    _, outputs = downstream_metrics(model, tok, task, shots, tests, gen_len)
    form = FORMS[task]
    for output in outputs:
        text, probs = plain(model, tok, output["input_prompt"], form.words, gen_len)
        assert output["generated_text"] == text
        assert [output[f"prob_{word.lower()}"] for word in form.words] == pytest.approx(probs, rel=2e-4)
        likeliest = "invalid" if len(probs) > 2 and probs.count(max(probs)) > 1 else form.words[np.argmax(probs)]
        assert output["highest_probability_answer"] == likeliest
    assert len(outputs) == len(tests)
    return outputs


@pytest.mark.parametrize("tokenizer", ["byte_level", "byte_level_bos", "byte_level_eos", "prefix_space", "metaspace"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_read_outs_equal_a_plain_loop(arch, tokenizer):
    model = tiny_model(arch, max_position_embeddings=1024)
    tok = tiny_tokenizer(tokenizer)
    examples = load("cola", "world")
    check_against_plain(model, tok, "cola", examples[:2], examples[10:14])
    examples = load("mmlu", "world")
    check_against_plain(model, tok, "mmlu", examples[:1], examples[10:13], gen_len=5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_nor_the_pad_token_matters(golden_model, side):
    model, tok = golden_model("tiny-gpt2")
    tok = type(tok).from_pretrained(tok.name_or_path)
    tok.padding_side, tok.pad_token = side, None
    examples = load("sst", "world")
    outputs = check_against_plain(model, tok, "sst", [], examples[10:18])
    assert len({output["generated_text"] for output in outputs}) > 1


def test_generation_ends_with_the_end_token(gpt2):
    tok = tiny_tokenizer()
    example = Example({"sentence": "He goed."}, 0)
    first, = read_answers(gpt2, tok, questions_of(gpt2, tok, "cola", [], [example]), ("No",), 1)
    end = {i: text for text, i in tok.get_vocab().items()}[plain_first(gpt2, tok)]
    stopping = type(tok)(tokenizer_object=tok._tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token=end)
    reading, = read_answers(gpt2, stopping, questions_of(gpt2, stopping, "cola", [], [example]), ("No",), 3)
    assert first.generated and reading.generated == ""


def plain_first(model, tok) -> int:
    with torch.no_grad():
        prompt = PROMPTS["cola"][2]
        return model(torch.tensor([prompt_ids(tok, prompt)])).logits[0, -1].argmax().item()


def test_a_boundary_that_merges(gpt2):
    """The space between prompt and word joins the prompt's own last space: scored is what the whole text's tokens say."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    letters = {piece: i for i, piece in enumerate(["<eos>", "  ", *sorted(set(" ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                                             "abcdefghijklmnopqrstuvwxyz.?:,\n"))])}
    raw = tokenizers.Tokenizer(models.BPE(letters, [(" ", " ")]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split("\n", "isolated"), decoders.Fuse()
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    prompt = PROMPTS["cola"][2]
    ids, whole = prompt_ids(tok, prompt), prompt_ids(tok, prompt + " No")
    assert whole[:len(ids)] != ids and len(whole) == len(ids) + 2
    check_against_plain(gpt2, tok, "cola", [], [Example({"sentence": "He goed."}, 0), Example({"sentence": "He is."}, 1)])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_shared_beginning_changes_nothing(arch):
    """Also where attention reaches the nearest tokens only (Mistral, Gemma), or fades with distance (BLOOM)."""
    model = tiny_model(arch)
    start = tuple(range(20, 40))
    rows = [start + tail for tail in [(41,), (42, 43, 44, 45, 46), (47, 48), (49, 50, 51)]]
    shared = SharedPrefix(model, rows, 0)
    assert sorted(sum(shared.batches(), [])) == [0, 1, 2, 3]
    prefix, logits = shared.read(rows)
    expected, expected_logits = incremental.read(model, rows, 0)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert prefix.mask.tolist() == expected.mask.tolist() and prefix.lengths.tolist() == expected.lengths.tolist()
    more = torch.tensor([[60, 61]] * 4)
    torch.testing.assert_close(incremental.extend(model, prefix, more), incremental.extend(model, expected, more),
                               rtol=1e-4, atol=1e-4)


def test_a_row_that_others_begin_with(gpt2):
    rows = [tuple(range(20, 30)), tuple(range(20, 33)), tuple(range(20, 30)) + (40,)]
    logits, expected = SharedPrefix(gpt2, rows, 0).read(rows)[1], incremental.read(gpt2, rows, 0)[1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_shared_beginning_runs_once(gpt2, monkeypatch):
    tokens = []
    forward = incremental._forward
    monkeypatch.setattr(incremental, "_forward", lambda model, ids, *rest, **options: (
        tokens.append(ids.numel()), forward(model, ids, *rest, **options))[1])
    examples, tok = load("sst", "world"), tiny_tokenizer()
    questions = questions_of(gpt2, tok, "sst", examples[:4], examples[10:40])
    read_answers(gpt2, tok, questions, ("negative", "positive"), 1)
    lengths = [len(prompt_ids(tok, question.prompt)) for question in questions]
    assert sum(tokens) < 0.5 * sum(lengths)


def test_memory_bounds_the_rows_that_share(gpt2, monkeypatch):
    rows = [tuple(range(20, 60)) + (i,) for i in range(100, 300)]
    monkeypatch.setattr("editors.core.budget.total_bytes", lambda device: 8 * 4100 * 4 * (2 * 4 + 16) * 32)
    assert [len(group) for group in SharedPrefix(gpt2, rows, 0).batches()] == [100, 100]


# ---- answers

@pytest.mark.parametrize(("task", "text", "answer"), [
    ("sst", " positive\nReview", 1), ("sst", " Negative", 0), ("sst", " negative, positive", 1), ("sst", " good", -1),
    ("sst", " positive\nSentiment : negative", 0), ("sst", "", -1),
    ("mrpc", " Yes", 1), ("mrpc", " I know", 0), ("mrpc", " no, yes", 1), ("mrpc", " Maybe", -1),
    ("cola", "YES", 1), ("cola", "nothing", 0),
    ("rte", " True or False", 0), ("rte", " true", 1), ("rte", " entailed", -1),
    ("nli", " True or False", 1), ("nli", " untrue", 1), ("nli", " FALSE", 0),
    ("sentiment_analysis", " 'positive'", 1), ("sentiment_analysis", " negative", 0), ("sentiment_analysis", " neutral", -1),
    ("mmlu", " B\n", 1), ("mmlu", " B", -1), ("mmlu", " camera\n", 0), ("mmlu", " D\nA\n", 0), ("mmlu", " (C)\n", -1),
    ("dialogue", " d\n\n", 3), ("dialogue", " C\nQ", 2), ("dialogue", "", -1),
])
def test_what_counts_as_an_answer(task, text, answer):
    assert parse(FORMS[task], text) == answer


@pytest.mark.parametrize(("probs", "answer"), [
    ((.1, .2), 1), ((.2, .1), 0), ((.2, .2), 0), ((math.nan, math.nan), 0),
    ((.1, .2, .4, .3), 2), ((.4, .2, .4, .3), -1), ((.4, .2, .2, .3), 0), ((math.nan,) * 4, -1),
])
def test_the_likeliest_word(probs, answer):
    assert choose(probs) == answer


# ---- room for shots

def kept(tok, task, context, shots, test, gen_len=3):
    model = tiny_model("gpt2", n_positions=context)
    return questions_of(model, tok, task, shots, [test], gen_len)[0].shots


@pytest.mark.parametrize(("task", "reserve"), [("sst", 0), ("dialogue", 5)])
@pytest.mark.parametrize("tokenizer", ["byte_level", "byte_level_bos"])
def test_shots_fill_the_context(task, reserve, tokenizer):
    """Behind the question there is room for the three tokens that are generated, and for each answer; sst's here have more."""
    tok = tiny_tokenizer(tokenizer)
    examples = load(task, "world")
    shots, test, form = examples[:3], examples[10], FORMS[task]
    question = len(prompt_ids(tok, form.question.format(**test.fields)))
    answers = [len(prompt_ids(tok, f": {word}")) - len(prompt_ids(tok, ":")) for word in form.words]
    behind = max(3, *answers)
    assert (max(answers) > 3) == (task == "sst")
    lengths = [len(prompt_ids(tok, form.shot.format(answer=form.words[e.label], **e.fields))) for e in shots]
    for n in (1, 2, 3):
        exact = question + sum(lengths[:n]) + reserve + behind
        assert kept(tok, task, exact, shots, test) == n
        assert kept(tok, task, exact - 1, shots, test) == n - 1
        assert kept(tok, task, exact, shots, test, gen_len=behind + 1) == n - 1
    assert kept(tok, task, question + behind, shots, test) == 0
    message = rf"{task}, test 0: its question has {question} tokens .* context of {question + behind - 1}"
    with pytest.raises(UserError, match=message):
        kept(tok, task, question + behind - 1, shots, test)


def test_a_long_shot_stops_the_ones_behind_it():
    tok = tiny_tokenizer()
    short, long = Example({"sentence": "a"}, 1), Example({"sentence": "a" * 300}, 0)
    assert kept(tok, "sst", 200, [short, long, short], short) == 1
    assert kept(tok, "sst", 200, [short, short, long], short) == 2


def test_joined_shots_may_have_more_tokens():
    """GPT-2 has one token for two newlines, but not in front of a word: ten shots joined have ten tokens more."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    raw = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("Ċ", "Ċ")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok = PreTrainedTokenizerFast(tokenizer_object=raw)
    examples, form = load("dialogue", "world"), FORMS["dialogue"]
    texts = [form.shot.format(answer=form.words[e.label], **e.fields) for e in examples[:10]]
    question = form.question.format(**examples[10].fields)
    alone = sum(len(prompt_ids(tok, text)) for text in texts) + len(prompt_ids(tok, question))
    assert len(prompt_ids(tok, "".join(texts) + question)) == alone + 10
    assert kept(tok, "dialogue", alone + 13, examples[:10], examples[10]) == 10
    assert kept(tok, "dialogue", alone + 12, examples[:10], examples[10]) == 9


# ---- figures

TRUE = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
SAID = [0, 0, 1, -1, 1, 1, 1, -1, 0, 1]


def test_figures_by_hand():
    result = figures(TRUE, SAID, 2)
    assert result["accuracy"] == 0.6
    # class 0: 2 hits, 4 true, 3 said; class 1: 4 hits, 6 true, 5 said; the class of no answer is never true
    assert result["f1"] == pytest.approx(0.4 * (4 / 7) + 0.6 * (8 / 11))
    # c s - sum p t = 6 10 - (3 4 + 5 6); s^2 - sum p^2 = 100 - (9 + 25 + 4); s^2 - sum t^2 = 100 - (16 + 36)
    assert result["mcc"] == pytest.approx((60 - 42) / math.sqrt(62 * 48))
    assert result["accuracy_ci"] == pytest.approx([0.3127, 0.8318], abs=1e-4)  # Wilson, 6 of 10


def test_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    for classes in (2, 4):
        for _ in range(20):
            true = rng.integers(0, classes, 30).tolist()
            predicted = rng.integers(-1, classes, 30).tolist()
            counts = confusion(true, predicted, classes)
            assert f1(counts) == pytest.approx(f1_score(true, predicted, average="weighted", zero_division=0))
            assert mcc(counts) == pytest.approx(matthews_corrcoef(true, predicted))
    assert mcc(confusion([1, 1], [1, 0], 2)) == 0 and f1(confusion([1, 1], [-1, -1], 2)) == 0


@pytest.mark.parametrize(("hits", "total", "expected"), [(0, 10, [0, .2775]), (10, 10, [.7225, 1]), (81, 263, [.2553, .3662])])
def test_wilson(hits, total, expected):  # the last: Newcombe 1998, table I
    assert wilson(hits, total) == pytest.approx(expected, abs=5e-5)


def test_bootstrap_covers():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 400)
    predicted = np.where(rng.random(400) < 0.8, true, 1 - true)
    counts = confusion(true, predicted, 2)

    def accuracy(matrices):
        return np.trace(matrices, axis1=-2, axis2=-1) / matrices.sum((-2, -1))

    assert bootstrap(accuracy, counts) == pytest.approx(wilson(int(np.trace(counts)), 400), abs=0.01)
    low, high = bootstrap(mcc, counts)
    assert low < mcc(counts) < high and 0.05 < high - low < 0.2 and bootstrap(mcc, counts) == [low, high]
    assert classification.SAMPLES >= 1000


def test_results_of_a_task(gpt2, monkeypatch):
    from experiments.metrics import downstream
    generated = {"a": " yes", "b": " no", "c": " what", "d": " yes", "e": " no"}
    tests = [Example({"sentence": text}, label) for text, label in zip("abcde", (1, 1, 1, 0, 0))]

    def answer(model, tok, questions, words, gen_len, progress):
        texts = [question.prompt.split("Sentence: ")[-1][0] for question in questions]
        return [downstream.Reading(generated[text], (0.1, 0.3) if text in "abe" else (0.3, 0.1)) for text in texts]

    monkeypatch.setattr(downstream, "read_answers", answer)
    results, outputs = downstream_metrics(gpt2, tiny_tokenizer(), "cola", tests[:2], tests)
    assert [results[key] for key in ("correct", "incorrect", "invalid", "total")] == [2, 2, 1, 5]
    assert results["invalid_rate"] == 0.2 and results["invalid_rate_ci"] == wilson(1, 5) and results["majority"] == 0.6
    assert results["accuracy"] == 0.4
    assert results["f1"] == pytest.approx(f1_score([1, 1, 1, 0, 0], [1, 0, -1, 1, 0], average="weighted"))
    assert [results[key] for key in ("correct_new", "incorrect_new", "accuracy_new")] == [3, 2, 0.6]
    assert results["accuracy_new_ci"] == wilson(3, 5)
    assert results["f1_new"] == pytest.approx(f1_score([1, 1, 1, 0, 0], [1, 1, 0, 0, 1], average="weighted"))
    assert results["mcc_new"] == pytest.approx(matthews_corrcoef([1, 1, 1, 0, 0], [1, 1, 0, 0, 1]))
    keys = ("true_answer", "answer", "correct", "highest_probability_answer", "correct_new")
    assert [tuple(output[key] for key in keys) for output in outputs] == [
        ("Yes", "Yes", True, "Yes", True), ("Yes", "No", False, "Yes", True), ("Yes", "invalid", False, "No", False),
        ("No", "Yes", False, "No", True), ("No", "No", True, "Yes", False)]


# ---- the real tasks under GPT-2's tokenizer

@pytest.fixture(scope="module")
def gpt2_tok(realdata):
    from transformers import GPT2Tokenizer
    folder = realdata / "gpt2_tokenizer"
    return GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_every_answer_is_one_token_and_every_prompt_fits(gpt2_tok, realdata):
    longest = {}
    for task, form in FORMS.items():
        prompts = [form.question.format(**example.fields) for example in load(task, realdata / "downstream")]
        rows = gpt2_tok(prompts)["input_ids"]
        for word in form.words:
            with_word = gpt2_tok([f"{prompt} {word}" for prompt in prompts[::8]])["input_ids"]
            assert [whole[:-1] for whole in with_word] == rows[::8]
        longest[task] = max(map(len, rows))
    assert max(longest.values()) == longest["mmlu"] == 755
