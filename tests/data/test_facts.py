"""Facts of one's own from every format, and what is said of those that can't be read."""

import json

import pytest

from common.errors import UserError
from data.facts import read_facts

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


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_facts(tmp_path / "facts.csv")
