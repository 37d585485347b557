"""The program that lists and changes a memory: what it prints and writes, and that a mistake changes nothing."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from editors.edit import Edit
from editors.memory.store import EditStore, Entry
from experiments.memory import main


@pytest.fixture
def file(tmp_path, capsys):
    path = tmp_path / "edits.memory"
    main(["create", str(path)])
    main(["add", str(path), "Where was Ann born?", "Paris"])
    capsys.readouterr()
    return path


def entries(path):
    return list(EditStore.load(path)[0])


def test_add_update_remove_list(file, tmp_path, capsys):
    lines = [{"input": "Who leads Orin?", "label": "Paul"}, {"input": "where was ANN born?", "label": "Rome"},
             {"prompt": "{} speaks", "subject": "Mia", "target_new": {"str": "French"}},
             {"input": "Who leads Orin?", "label": "Paul"}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    main(["add", str(file), "--from", str(tmp_path / "more.jsonl")])
    assert "2 edits added, 1 replaced, 1 there already; 3 in all" in capsys.readouterr().out
    assert entries(file) == [Entry(0, "where was ANN born?", "Rome"), Entry(1, "Who leads Orin?", "Paul"),
                             Entry(2, "Mia speaks", "French")]
    main(["update", str(file), "1", "--label", "Paula"])
    main(["remove", str(file), "0"])
    capsys.readouterr()
    main(["list", str(file), "--json"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"id": 1, "input": "Who leads Orin?", "label": "Paula"}, {"id": 2, "input": "Mia speaks", "label": "French"}]
    main(["list", str(file), "--limit", "1"])
    assert capsys.readouterr().out.splitlines() == ["2 edits", "     1  Who leads Orin?  ->  Paula", "... and 1 more"]
    main(["add", str(file), "New?", "yes"])
    assert "id 3" in capsys.readouterr().out


def test_statements_need_no_label(tmp_path):
    main(["create", str(tmp_path / "s"), "--statements"])
    main(["add", str(tmp_path / "s"), "Ann moved to Paris."])
    assert entries(tmp_path / "s") == [Entry(0, "Ann moved to Paris.", "")]


@pytest.mark.parametrize("words, message", [
    (["add", "FILE", "Who?"], "no label"),
    (["add", "FILE"], "give one edit"),
    (["update", "FILE", "0"], "nothing to change"),
    (["update", "FILE", "5", "--label", "x"], "no edit 5"),
    (["remove", "FILE", "0", "7"], "no edit 7"),
    (["create", "FILE"], "is there already"),
    (["create", "new.memory", "--model_name", "gpt2"], "--model_name has no effect without --alg_name"),
    (["create", "new.memory", "--dtype", "float32"], "--dtype has no effect without --alg_name"),
    (["ask", "FILE", "Who?", "--run", "nowhere", "--model_name", "gpt2"], "no effect with --run"),
    (["list", "nowhere.memory"], "no such memory file"),
])
def test_mistakes_change_nothing(file, words, message):
    before = file.read_bytes()
    with pytest.raises(UserError, match=message) as error:
        main([str(file) if word == "FILE" else word for word in words])
    assert "\n" not in str(error.value) and file.read_bytes() == before


@pytest.mark.parametrize("line, message", [
    ("{", "line 2: not valid JSON"), ('{"input": "a?"}', "no label"),
    ('{"prompt": "x", "subject": "y", "target_new": "z"}', "line 2: request 0"),
    ('{"input": "a?", "label": null}', "line 2: .*no label"), ('{"input": "a?", "label": ""}', "line 2: .*no label"),
    ('{"input": " ", "label": "b"}', "line 2: .*input is empty"),
])
def test_bad_files_of_edits(file, tmp_path, line, message):
    before = file.read_bytes()
    (tmp_path / "more.jsonl").write_text('{"input": "b?", "label": "c"}\n' + line)
    with pytest.raises(UserError, match=message):
        main(["add", str(file), "--from", str(tmp_path / "more.jsonl")])
    assert file.read_bytes() == before


def test_a_memory_of_a_decoder(golden, tmp_path, capsys):
    """Created for an editor and a model, filled here, and applied there."""
    model_name, file = str(golden / "tiny-gpt2"), str(tmp_path / "edits.memory")
    (tmp_path / "lu.json").write_text(json.dumps({"threshold": 0.1, "onehot_logit": 20}))
    create = ["create", file, "--alg_name", "LU", "--hparams_fname", str(tmp_path / "lu.json"), "--model_name", model_name]
    main(create)
    main(["add", file, "Orla Venn lives in the city of", "Castavel"])
    capsys.readouterr()
    main(["ask", file, "Orla Venn lives in the city of", "The ferry was late", "--tokens", "6"])
    inside, by, outside, model = capsys.readouterr().out.splitlines()
    assert inside == "Orla Venn lives in the city of  ->  Castavel" and "by edit 0 (distance 0.000)" in by
    assert outside.startswith("The ferry was late  ->  ") and "by the model; nearest is edit 0" in model
    loaded, tok = AutoModelForCausalLM.from_pretrained(model_name), AutoTokenizer.from_pretrained(model_name)
    with torch.no_grad(), Edit.load(file).applied(loaded):
        logits = loaded(torch.tensor([tok("Orla Venn lives in the city of").input_ids])).logits
    assert int(logits[0, -1].argmax()) == tok(" Castavel").input_ids[0]
    for words, message in ((["ask", file, " "], "a query is empty"), (["ask", file, "a", "--tokens", "500"], "leave no room"),
                           (create[:1] + [file + "2", "--alg_name", "FT", *create[4:]], "keeps no memory|unknown|missing"),
                           ([*create[:1], file + "2", *create[2:], "--statements"], "have labels")):
        with pytest.raises(UserError, match=message) as error:
            main(words)
        assert "\n" not in str(error.value) and not (tmp_path / "edits.memory2").exists()
