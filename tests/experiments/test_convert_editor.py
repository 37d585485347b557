"""Published checkpoints of MEND and KE become trained editors, without running what a pickle says."""

import pytest
import torch
from transformers import GPT2Config

from common.errors import UserError
import editors
from editors.learned import checkpoint, published
from editors.learned.algorithms import algorithm
from experiments import convert_editor
from tests.editors.learned.conftest import arrays
from tests.editors.learned.test_ke import published as ke_name
from tests.editors.learned.trained import INNER, trained
from tests.editors.test_contract import REQUESTS


def write(path, state, **more):
    """As the published programs: networks beside the model's configuration, the optimiser and other things."""
    model = {**state, "model_config": GPT2Config(n_layer=2), "model.transformer.ln_f.weight": torch.ones(3)}
    torch.save({"model": model, "opt": {"state": {}}, "lr_opt": None, "val_stats": {"loss": 0.5},
                "start_time": "01/02/2022-03:04:05/6", "elapsed_time": 3.0, "step": 7, **more}, path)


@pytest.mark.parametrize("name", ["mend", "gtn", "efk"])
def test_an_editor_of_the_published_names(name, tiny_gpt2, golden, tmp_path, monkeypatch):
    """The same networks, and the same edits."""
    model, tok = tiny_gpt2
    config_key = algorithm(name).config_key()
    alg, path = trained(config_key, model, tok, tmp_path, iterations=4)
    if config_key == "mend":
        state = {key.replace("mend.", f"{name}.", 1): t for key, t in alg.state().items()}
    else:
        state = {f"editor.{ke_name(key)}": t for key, t in alg.state().items()}
        words = state["editor.condition.embedding.weight"]
        state["editor.condition.embedding.weight"] = torch.cat([words, words.mean(0, keepdim=True)])  # [PAD]
    write(tmp_path / "published.pt", state)
    monkeypatch.setenv("KE_DATA_DIR", str(tmp_path / "data"))
    options = ["descent=true"] if config_key == "mend" else []
    published, folder = str(tmp_path / "published.pt"), str(golden / "tiny-gpt2")
    out = convert_editor.main(published, name, folder, option=options, inner_params=INNER)
    assert out.parent == tmp_path / "data" / "learned" / ("MEND" if config_key == "mend" else "KE")
    converted, expected = checkpoint.read(out)[1], checkpoint.read(path)[1]
    assert converted.keys() == expected.keys() and all(torch.equal(converted[key], t) for key, t in expected.items())
    editor = {"mend": "MEND", "efk": "KE"}[config_key]
    one, two = (editors.load(editor, {"checkpoint": str(p)}).edit(model, tok, REQUESTS).deltas() for p in (out, path))
    assert all(torch.equal(one[n], two[n]) for n in INNER)


def test_options_from_shapes():
    z, about = arrays("mend_gpt2")
    names = {key.removeprefix("weights_random/"): torch.tensor(z[key]) for key in z if key.startswith("weights_random/")}
    state = {key if key == "edit_lrs" else f"gtn.{key}": tensor for key, tensor in names.items()}
    options, _ = published.mend_state(state)
    config = about["mend_config"]
    assert {key: options[key] for key in ("shared", "combine", "n_hidden", "one_sided", "x_only", "delta_only")} == {
        key: config[key] for key in ("shared", "combine", "n_hidden", "one_sided", "x_only", "delta_only")}
    assert options["rank"] == min(config["rank"], max(t.shape[0] for key, t in names.items() if key.endswith(".u")))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_mistakes(golden, tmp_path, capsys):
    path, model = tmp_path / "file.pt", str(golden / "tiny-gpt2")

    def convert(alg="MEND", **more):
        out = str(tmp_path / "new" / "out.safetensors")
        return convert_editor.main(str(path), alg, model, out, **{"inner_params": INNER, **more})

    with pytest.raises(UserError, match="file.pt: no such file"):
        convert()
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no checkpoint of tensors"):
        convert()
    write(path, {}, callback=Evil())
    with pytest.raises(UserError, match="no checkpoint of tensors") as error:
        convert()
    assert "\n" not in str(error.value) and "run" not in capsys.readouterr().out
    write(path, {"edit_lrs": torch.zeros(4)})
    for alg, message in (("MEND", "holds no MEND"), ("KE", "holds no KE"), ("ENN", "only those of MEND and KE")):
        with pytest.raises(UserError, match=f"file.pt: .*{message}"):
            convert(alg)
    with pytest.raises(UserError, match="--inner_params: name"):
        convert(inner_params=())
    state = {"mend.(64, 256).mlp.layers.0.u": torch.zeros(320, 2), "edit_lrs": torch.zeros(4)}
    write(path, state)
    for option, message in (("descent", "KEY=VALUE"), ("rank=[1", "--option"), ("descnt=1", "descnt"),
                            ("norm=false", "networks are not those")):
        with pytest.raises(UserError, match=message):
            convert(option=[option])
    write(path, {"mend.(64, 256).mlp.layers.0.u": torch.tensor(1.0), "edit_lrs": torch.zeros(4)})
    with pytest.raises(UserError, match="where a matrix is expected"):
        convert()
    with pytest.raises(UserError, match="is a folder"):
        convert_editor.main(str(path), "MEND", model, str(tmp_path), inner_params=INNER)
    assert not (tmp_path / "new" / "out.safetensors").exists()
