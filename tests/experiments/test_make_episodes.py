"""The generators of edit data, on the tiny golden model and small files."""
import json

import pytest
import torch
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, BertConfig, BertModel

from common.errors import UserError
from data import episodes
from data.episodes import back_translation
from data.world import small
from editors.learned.classifier import BertClassifier
from experiments import make_episodes
from experiments.training import answers
from experiments.training.models import load_editable


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / "texts.txt"
    words = "the old market was quiet and the small garden stayed open while the night train waited for the rain".split()
    path.write_text("\n".join(" ".join(words[i % 7:] + words * 3) + f" {i}." for i in range(30)) + "\nToo short.\n")
    return path


def test_sampled_continuations_are_read_by_the_loader(golden, passages, tmp_path, capsys):
    argv = ["gen", "--model_name", str(golden / "tiny-gpt2"), "--texts", str(passages), "--count", "8", "--n_tokens", "4",
            "--context_tokens", "12"]
    for out, seed in (("train.json", "0"), ("again.json", "0"), ("valid.json", "1")):
        make_episodes.main([*argv, "--out", str(tmp_path / out), "--seed", seed])
    written = json.loads((tmp_path / "train.json").read_text())
    assert written == json.loads((tmp_path / "again.json").read_text()) != json.loads((tmp_path / "valid.json").read_text())
    assert len(written["completions"]) == len(written["original"]) == 8 and written["n_tokens"] == 4
    tok = AutoTokenizer.from_pretrained(golden / "tiny-gpt2")
    for original, completion in zip(written["original"], written["completions"]):
        ids = tok(completion)["input_ids"]
        assert tok.decode(ids[:-4]) and original.startswith(tok.decode(ids[:-4])) and tok.decode(ids) == completion
    options = {"path": str(tmp_path), "wiki_webtext": False, "wikitext_path": str(passages)}
    item = episodes.load("gen", "validation", "files", options).item(0, 0)
    assert item.edit.scored == 4


def test_templates_fill_in_rephrasings(tmp_path, capsys):
    rows = [{"input": "What is the river of Ulda?", "id": 3}, {"input": "The Ulda is a river.", "id": 4}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_episodes.main(["rephrase", "--rows", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["input"], row["id"]) for row in written] == [(row["input"], row["id"]) for row in rows]
    assert "What's the river of Ulda?" in written[0]["filtered_rephrases"] and all(row["filtered_rephrases"] for row in written)
    assert "by templates" in capsys.readouterr().out


@pytest.fixture
def translator(tmp_path):
    """A random sequence-to-sequence model: its "translations" are nonsense, in beams."""
    tok = small.tokenizer(framed=False)
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=len(tok), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=80,
        pad_token_id=tok.pad_token_id,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, decoder_start_token_id=tok.eos_token_id,
        forced_eos_token_id=None, init_std=1.0))
    folder = tmp_path / "translator"
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def test_translation_there_and_back(translator, tmp_path):
    texts = ["Where is Ulda?", "Who sings?"]
    rephrases = back_translation.rephrase(texts, translator, translator, beams=2)
    pivots = back_translation.translate(texts, translator, 2, 8)
    returned = [back_translation.translate(group, translator, 2, 8) for group in pivots]
    for text, new, groups in zip(texts, rephrases, returned):
        candidates = [candidate for group in groups for candidate in group]
        assert set(new) <= set(candidates) and len({back_translation.normalised(c) for c in new}) == len(new)
        assert {back_translation.normalised(c) for c in candidates} - {""} - {back_translation.normalised(text)} == \
            {back_translation.normalised(c) for c in new}
    assert back_translation.normalised("Who's  there?") == "whosthere"


@pytest.mark.parametrize("argv, words", [
    (["rephrase", "--rows", "{tmp}/rows.jsonl", "--there", "x"], "both directions"),
    (["rephrase", "--rows", "{tmp}/rows.jsonl", "--there", "{tmp}/no", "--back", "{tmp}/no"], "did not load"),
    (["rephrase", "--rows", "{tmp}/none.jsonl"], "no-such-file|No such file|can't be read"),
    (["gen", "--model_name", "{gpt2}", "--texts", "{tmp}/rows.jsonl"], "'text' is missing"),
    (["gen", "--model_name", "{gpt2}", "--texts", "{tmp}/short.txt"], "no passage of 50"),
    (["gen", "--model_name", "{gpt2}", "--texts", "{tmp}/texts.txt", "--n_tokens", "5000"], "leaves no context"),
    (["gen", "--model_name", "{gpt2}", "--texts", "{tmp}/texts.txt", "--context_tokens", "1"],
     "--context_tokens 1: .* at least 2"),
    (["nq"], "did not load"), (["kilt", "--experiment", "qa", "--split", "dev"], "can't be reached|answers"),
])
def test_bad_requests_write_nothing(argv, words, golden, passages, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"input": "Who?"}\n')
    (tmp_path / "short.txt").write_text("one two three\n")
    argv = [part.format(tmp=tmp_path, gpt2=golden / "tiny-gpt2") for part in argv]
    with pytest.raises(UserError, match=words):
        make_episodes.main([*argv, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_world_in_published_files(tmp_path, capsys):
    make_episodes.main(["world", "--experiment", "fc", "--facts", "400", "--out", str(tmp_path / "fever")])
    assert len(episodes.load("fc", "test", "files", data_dir=tmp_path)) > 10
    assert capsys.readouterr().out.count("rows") == 3


@pytest.mark.parametrize("prediction, beams, kept", [
    ("Ada Lorn", ["Ada Lorn.", "ada-lorn", "Ada Loren", "Bela Varn", "Bela Varn."], ["Bela Varn"]),
    ("1912", ["1913", "1912.", "nineteen twelve", ""], ["1913", "nineteen twelve"])])
def test_alternatives_are_other_answers(prediction, beams, kept):
    assert answers.alternatives(prediction, beams) == kept


def test_levenshtein():
    pairs = (("", "abc"), ("kitten", "sitting"), ("same", "same"), ("ab", "ba"))
    assert [answers.distance(*pair) for pair in pairs] == [3, 3, 0, 2]


def test_answers_of_a_model(translator, tmp_path):
    rows = [{"input": "Where is Ulda?", "output": [{"answer": "here"}], "filtered_rephrases": ["Where is Ulda?", "Who sings?"]}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    make_episodes.main(["answers", "--experiment", "qa", "--rows", str(tmp_path / "rows.jsonl"), "--model_name", translator,
                        "--out", str(tmp_path / "out.jsonl"), "--device", "cpu"])
    written = json.loads((tmp_path / "out.jsonl").read_text())
    model, tok = load_editable({"name": translator}, "qa", "cpu")
    ids = model.generate(**tok("Where is Ulda?", return_tensors="pt"), num_beams=5, num_return_sequences=5, max_new_tokens=32)
    best, *others = (text.strip() for text in tok.batch_decode(ids, skip_special_tokens=True))
    assert written["prediction"] == best and written["output"] == rows[0]["output"]
    assert written["alternatives"] == answers.alternatives(best, others)
    assert written["filtered_rephrases"][0] == "Where is Ulda?"


def test_checked_claims(tmp_path):
    tok = small.tokenizer(framed=True)
    torch.manual_seed(0)
    model = BertClassifier(BertModel(BertConfig(vocab_size=len(tok), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                                intermediate_size=16, max_position_embeddings=40))).eval()
    model.classifier.weight.data *= 20
    rows = [{"input": f"Ada plays the {word}.", "filtered_rephrases": [f"The {word} is played.", "As we know, Ada sings."]}
            for word in "harp lute drum oboe piano cello".split()]
    written = answers.checked_claims(model, tok, rows)
    assert {row["prediction"] for row in written} <= {"SUPPORTS", "REFUTES"}
    for row, original in zip(written, rows):
        assert (row["logit"] > 0) == (row["prediction"] == "SUPPORTS") != (row["alternatives"] == ["SUPPORTS"])
        for text in original["filtered_rephrases"]:
            logit = model(**{k: v for k, v in tok(text, return_tensors="pt").items() if k != "token_type_ids"}).item()
            assert (text in row["filtered_rephrases"]) == ((logit > 0) == (row["logit"] > 0))
