"""Facts of one's own from every format, and what is said of those that can't be read."""

import json

import pytest

from common.errors import UserError
from data import Prompt, Target
from data.facts import read_facts
import data

DRUM = {"prompt": "{} plays the", "subject": "Astrid Skezurd", "target_new": "drum"}


@pytest.mark.parametrize("record", [
    {"prompt": "{} plays the", "subject": "Astrid Skezurd", "target": "drum"},
    {"prompt": "Astrid Skezurd plays the", "subject": "Astrid Skezurd", "target_new": "drum", "ground_truth": "flute"},
    {"case_id": 3, "requested_rewrite": {"prompt": "{} plays the", "subject": "Astrid Skezurd", "target_new": {"str": "drum"}}},
    {"subject": "Astrid Skezurd", "src": "Astrid Skezurd plays the", "alt": "drum", "answers": ["flute"]},
])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_formats(tmp_path, record, ending):
    path = tmp_path / f"facts.{ending}"
    path.write_text(json.dumps([record]) if ending == "json" else f"\n{json.dumps(record)}\n")
    assert read_facts(path) == [DRUM]


def test_csv_and_joined(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text('\ufeffprompt,subject,target\n"{} plays the","Astrid Skezurd","drum"\n{} 的首都是,法国,里昂\n')
    assert read_facts(path) == [DRUM, {"prompt": "{} 的首都是", "subject": "法国", "target_new": "里昂"}]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([DRUM | {"joined": True}]))
    assert read_facts(path) == [DRUM | {"joined": True}]


@pytest.mark.parametrize("name, content, message", [
    ("facts.csv", "prompt,subject\n{} is,Ann\n", "columns prompt, subject and target; target is not there"),
    ("facts.csv", "prompt,subject,target\n{} is,Ann\n", "line 2: has not as many cells"),
    ("facts.csv", 'prompt,subject,target\n{} is,Ann,"re"d\n', "line 2: not valid CSV"),
    ("facts.jsonl", '{"prompt": "{} is", "subject": "Ann", "target": "tall"}\n{"prompt": ', "line 2: not valid JSON"),
    ("facts.json", '[{"prompt": "{} is", "subject": "Ann"}]', "record 1: lacks 'target'; it has 'prompt', 'subject'"),
    ("facts.json", '[{"prompt": "{} is", "subject": "Ann", "target": " "}]', "record 1: target should be a text that is not"),
    ("facts.json", '[{"prompt": "{} is {}", "subject": "Ann", "target": "a"}]', "record 1: the prompt has 2 places"),
    ("facts.json", '[{"prompt": "Bob is", "subject": "Ann", "target": "a"}]', "does not name its subject 'Ann'"),
    ("facts.json", '[{"prompt": "{} is", "subject": "Ann", "target": "a", "joined": 1}]', "joined should be true or false"),
    ("facts.json", '[7]', "record 1: should be a JSON object, found int"),
    ("facts.json", '{}', "should hold a list of facts, found a JSON dict"),
    ("facts.json", '[]', "holds no facts"),
    ("facts.json", '[' * 100_000, "not valid JSON"),
    ("facts.txt", "Ann is tall", "names end in .json, .jsonl or .csv"),
])
def test_mistakes(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_facts(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("target, message", [
    ("drum", "says the same again as record 1"), ("lute", "says 'drum', against record 1")])
def test_facts_that_are_there_twice(tmp_path, target, message):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([DRUM | {"target_new": target}, DRUM]))
    with pytest.raises(UserError, match=message):
        read_facts(path)


KNOWEDIT = {
    "prompt": "Ma Lo, who saw Ma, plays the", "subject": "Ma", "target_new": "drum", "ground_truth": ["flute", "lute"],
    "rephrase_prompt": "On stage Ma plays the",
    "portability": {"Reasoning": [{"prompt": "Drums are played by", "ground_truth": [["Ma", "Ma Lo"]]},
                                  {"prompt": "nothing is known", "ground_truth": []}]},
    "locality": {"Relation_Specificity": {"prompt": ["Bo plays the", "Ma lives in"], "ground_truth": ["harp", "Rome"]}},
}


def test_a_record_of_knowedit(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([KNOWEDIT]))
    record, = data.load(path)
    assert (record.prompt, record.target_new, record.target_true) == (
        "{} Lo, who saw Ma, plays the", Target("drum"), Target("flute"))
    assert record.paraphrase_prompts == ("On stage Ma plays the",)
    assert record.portability == (Prompt("Drums are played by", "Ma"),)
    assert record.locality == (Prompt("Bo plays the", "harp"), Prompt("Ma lives in", "Rome"))


def test_every_program_reads_them(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("prompt,subject,target\n{} plays the,Ann,drum\n{} plays the,Bo,harp\n")
    first, second = data.load(str(path))
    assert (first.subject, second.case_id, second.target_new.str, second.target_true) == ("Ann", 1, "harp", None)
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps({"case_id": i, "requested_rewrite": DRUM | {"target_new": {"str": "x"}}})
                              for i in (4, 2)))
    assert [record.case_id for record in data.load(path)] == [4, 2]


@pytest.mark.parametrize("changes, message", [
    (dict(portability=["x"]), "record 1: portability should be an object of groups"),
    (dict(portability={"Reasoning": ["x"]}), "record 1: portability: Reasoning should hold objects"),
    (dict(locality={"Other": {"prompt": ["a"], "ground_truth": []}}), "locality: Other has 1 prompts and 0 answers"),
    (dict(locality={"Other": [{"prompt": "", "ground_truth": "a"}]}), "locality: Other: prompt should be a text"),
    (dict(ground_truth=3), "record 1: ground_truth should be a text"),
    (dict(rephrase_prompt=[" "]), "record 1: rephrase_prompt should be a text"),
])
def test_mistakes_of_knowedit(tmp_path, changes, message):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([KNOWEDIT | changes]))
    with pytest.raises(UserError, match=message):
        data.load(path)


def test_mixed_formats(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(DRUM) + "\n" + json.dumps({"case_id": 1, "requested_rewrite": DRUM | {"subject": "Bo"}}))
    with pytest.raises(UserError, match="line 2: is of another format than the first record .keys case_id, requested_rewrite"):
        data.load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_facts(tmp_path / "facts.csv")
