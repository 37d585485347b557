"""SERAC and LU as editors of decoders: networks from folders, saved edits, what is refused."""

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import editors
from editors.memory.parts import save_parts
from editors.memory.routed import RoutedEdit
from editors.memory.routing import is_routed
from editors.memory.serac import SERAC
from editors.memory.store import EditStore
from tests.editors.learned.conftest import LEARNED
from tests.editors.test_contract import REQUESTS

QUERIES = ["Where in the world does Orla Venn live? In", "The ferry was late"]


@pytest.fixture(scope="module")
def system(tiny_gpt2, tmp_path_factory):
    """Folders of two untrained SERACs."""
    if not LEARNED.is_dir():
        pytest.skip("the published learned editors' outputs are not beside this checkout")
    model, tok = tiny_gpt2
    enc = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "enc")
    folders = []
    for seed in (0, 1):
        classifier = AutoModel.from_pretrained(LEARNED / "models" / "scope-bert-tiny", dtype=torch.float32,
                                               add_pooling_layer=False)
        decoder = copy.deepcopy(model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in decoder.parameters():
                p.add_(0.02 * torch.randn_like(p))
        alg = SERAC(model, {"dist_heads": 2}, tok, classifier, enc, decoder)
        folders.append(save_parts(alg, tmp_path_factory.mktemp("serac") / "system", threshold=1e-6))
    return folders


def last(model, tok, prompt):
    with torch.no_grad():
        return model(torch.tensor([tok(prompt).input_ids])).logits[0, -1]


def test_an_edit_is_applied_saved_and_loaded(system, tiny_gpt2, tmp_path):
    model, tok = tiny_gpt2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edit = editors.load("SERAC", {"system": str(system[0])}).edit(model, tok, REQUESTS)
    assert [(entry.input, entry.label) for entry in edit.memory] == [
        ("Orla Venn lives in the city of", "Castavel"), ("The native language of Mira O'Dalvey is", "Nyvian")]
    plain = [last(model, tok, query) for query in QUERIES]
    with edit.applied(model):
        edited = [last(model, tok, query) for query in QUERIES]
    assert not torch.equal(edited[0], plain[0])  # nearly everything is in scope, at this threshold
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    edit.save(tmp_path / "edit.safetensors")
    loaded = editors.Edit.load(tmp_path / "edit.safetensors")
    assert isinstance(loaded, RoutedEdit) and loaded.info == json.loads(json.dumps(dict(edit.info)))
    with loaded.applied(model):
        assert all(torch.equal(last(model, tok, query), logits) for query, logits in zip(QUERIES, edited))


def test_the_memory_is_a_product(system, tiny_gpt2):
    """Changed without training: what is applied next goes by it, and vectors of edits that stay are not computed again."""
    model, tok = tiny_gpt2
    edit = editors.load("SERAC", {"system": str(system[0]), "threshold": 1e-6}).edit(model, tok, REQUESTS)
    with edit.applied(model):
        one = last(model, tok, QUERIES[0])
        edit.memory.update(0, label="Lutmere"), edit.memory.update(1, label="Catalan")
        assert torch.equal(last(model, tok, QUERIES[0]), one)
    with edit.applied(model):
        two = last(model, tok, QUERIES[0])
    assert not torch.equal(one, two)
    edit.memory.update(0, label="Castavel"), edit.memory.update(1, label="Nyvian")
    with edit.applied(model):
        assert torch.allclose(last(model, tok, QUERIES[0]), one, atol=1e-5)
    edit.memory.remove(0), edit.memory.remove(1)
    with pytest.raises(editors.EditingError, match="memory is empty"):
        edit.apply(model)


def test_later_requests_hold(system, tiny_gpt2):
    again = [*REQUESTS, REQUESTS[0] | {"target_new": {"str": "Lutmere"}}]
    edit = editors.load("SERAC", {"system": str(system[0])}).edit(*tiny_gpt2, again)
    assert [entry.label for entry in edit.memory] == ["Lutmere", "Nyvian"]


@pytest.mark.parametrize("hparams, message", [
    ({}, "give either system"),
    ({"system": "x", "scope": "y"}, "give either system"),
    ({"system": "nowhere"}, "nowhere holds no trained SERAC"),
    ({"scope": "./nowhere"}, "./nowhere: no model there"),
    ({"system": "x", "thresold": 1}, "did you mean 'threshold'"),
])
def test_bad_hparams(tiny_gpt2, hparams, message):
    with pytest.raises(editors.EditingError, match=message) as error:
        editors.load("SERAC", hparams).edit(*tiny_gpt2, REQUESTS)
    assert "\n" not in str(error.value)


def test_halves_of_different_runs(system, tiny_gpt2):
    mixed = {"scope": str(system[0] / "scope"), "counterfactual": str(system[1] / "counterfactual")}
    with pytest.raises(editors.EditingError, match="trained in different runs"):
        editors.load("SERAC", mixed).edit(*tiny_gpt2, REQUESTS)


@pytest.mark.parametrize("name, hparams", [("LU", {}), ("SERAC", None)])
def test_what_an_editor_promises(system, tiny_gpt2, name, hparams, tmp_path):
    model, tok = tiny_gpt2
    editor = editors.load(name, hparams if hparams is not None else {"system": str(system[0])})
    bad = [({"subject": " "}, "subject"), ({"target_new": {"str": ""}}, "target"), ({"prompt": "lives in"}, "{}")]
    for change, message in bad:
        with pytest.raises(editors.EditingError, match=message):
            editor.edit(model, tok, [REQUESTS[0] | change])
    with pytest.raises(editors.EditingError, match="at least one"):
        editor.edit(model, tok, [])
    with pytest.raises(editors.EditingError, match="no sequences"):
        editors.EditSequence(editor, model, tok)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with editor.edit(half, tok, REQUESTS).applied(half):
        assert last(half, tok, QUERIES[0]).dtype == torch.bfloat16
    assert editor.edit(model, tok, REQUESTS).info["editor"] == name


def test_lookup_answers_its_own_prompt(tiny_gpt2, tmp_path):
    model, tok = tiny_gpt2
    edit = editors.load("LU", {"threshold": 0.1, "onehot_logit": 30}).edit(model, tok, REQUESTS)
    edit.save(tmp_path / "edit.safetensors")
    for one in (edit, editors.Edit.load(tmp_path / "edit.safetensors")):
        with one.applied(model):
            assert int(last(model, tok, "Orla Venn lives in the city of").argmax()) == tok(" Castavel").input_ids[0]


def test_a_memory_without_an_editor(tmp_path):
    memory = EditStore()
    memory.add("a", "b")
    memory.save(tmp_path / "m.safetensors")
    with pytest.raises(editors.EditingError, match="no editor wrote"):
        RoutedEdit.load(tmp_path / "m.safetensors")


def test_prompts_longer_than_the_encoder(system, tiny_gpt2):
    """Read without their beginning, with a warning."""
    model, tok = tiny_gpt2
    edit = editors.load("SERAC", {"system": str(system[0])}).edit(model, tok, REQUESTS)
    long = tok("The ferry was late and " * 30).input_ids[:126]
    warning = "longer than there is room for, and are read without their beginning"
    with edit.applied(model), pytest.warns(UserWarning, match=warning):
        model(torch.tensor([long]))


def test_parts_that_lack_what_was_trained(system, tiny_gpt2, tmp_path):
    """Nothing at random, and the edited model itself only where it was trained so."""
    shutil.copytree(system[0], tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "counterfactual")
    encoder = str(system[0] / "scope")
    for hparams, message in [
        ({"system": str(tmp_path / "half")}, "has no folder counterfactual"),
        ({"system": str(system[0]), "cross_attend": True}, "cross_attend: .* was trained with False, not with True"),
        ({"system": str(system[0]), "dist_heads": 1}, "dist_heads: .* was trained with 2"),
        ({"scope": str(LEARNED / "models" / "scope-bert-tiny"), "cross_attend": True},
         "random numbers .cross_attend needs a classifier of pairs"),
        ({"scope": encoder, "counterfactual": encoder}, "counterfactual: .* has no cls|is an encoder"),
    ]:
        with pytest.raises(editors.EditingError, match=message) as error:
            editors.load("SERAC", hparams).edit(*tiny_gpt2, REQUESTS).apply(tiny_gpt2[0])
        assert "\n" not in str(error.value)
    assert not is_routed(tiny_gpt2[0])


def test_the_model_itself_answers_where_it_was_trained_so(tiny_gpt2, tmp_path):
    model, tok = tiny_gpt2
    classifier = AutoModel.from_pretrained(LEARNED / "models" / "scope-bert-tiny", dtype=torch.float32, add_pooling_layer=False)
    enc = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "enc")
    folder = save_parts(SERAC(model, {"freeze_cntr": True}, tok, classifier, enc, None), tmp_path / "system", threshold=1e-6)
    query = f"Orla Venn lives in the city of Castavel {QUERIES[0]}"
    with editors.load("SERAC", {"system": str(folder)}).edit(model, tok, REQUESTS[:1]).applied(model):
        edited = last(model, tok, QUERIES[0])
    assert torch.allclose(edited, last(model, tok, query), atol=1e-5)


def test_networks_trained_anew_are_not_taken_for_the_old_ones(system, tiny_gpt2, tmp_path):
    model, tok = tiny_gpt2
    shutil.copytree(system[0], tmp_path / "system")
    editors.load("SERAC", {"system": str(tmp_path / "system")}).edit(model, tok, REQUESTS).save(tmp_path / "edit")
    shutil.rmtree(tmp_path / "system")
    shutil.copytree(system[1], tmp_path / "system")
    with pytest.raises(editors.EditingError, match="the edit's networks are gone: they were of run [0-9a-f]+, those there now"):
        editors.Edit.load(tmp_path / "edit").apply(model)


@pytest.mark.parametrize("name", ["SERAC", "LU"])
def test_other_models(system, tiny_gpt2, name, tmp_path):
    model, tok = tiny_gpt2
    edit = editors.load(name, {"system": str(system[0])} if name == "SERAC" else {}).edit(model, tok, REQUESTS)
    edit.save(tmp_path / "edit")
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    for one in (edit, editors.Edit.load(tmp_path / "edit")):
        with pytest.raises(editors.EditingError, match="a model of 1,000 tokens, this one has 1,008"):
            one.apply(larger)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    with pytest.warns(UserWarning, match="on another model, or on other weights"):
        with editors.Edit.load(tmp_path / "edit").applied(other):
            pass


def test_exports_replace_nothing_but_exports(system, tiny_gpt2, tmp_path):
    folder = tmp_path / "system"
    shutil.copytree(system[0], folder)
    run = AutoConfig.from_pretrained(folder / "scope").serac["run"]
    classifier = AutoModel.from_pretrained(LEARNED / "models" / "scope-bert-tiny", dtype=torch.float32, add_pooling_layer=False)
    alg = SERAC(*tiny_gpt2[:1], {}, tiny_gpt2[1], classifier, AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "enc"),
                copy.deepcopy(tiny_gpt2[0]))
    save_parts(alg, folder)
    assert AutoConfig.from_pretrained(folder / "scope").serac["run"] != run
    assert sorted(p.name for p in tmp_path.iterdir()) == ["system"]
    (folder / "notes.txt").write_text("precious")
    (tmp_path / "alien" / "scope").mkdir(parents=True)
    (tmp_path / "file").touch()
    alien = "holds other things"
    for place, message in ((folder, alien), (tmp_path / "alien", alien), (tmp_path / "file", "is a file")):
        with pytest.raises(editors.EditingError, match=message):
            save_parts(alg, place)
    assert (folder / "notes.txt").read_text() == "precious" and (tmp_path / "alien" / "scope").is_dir()
