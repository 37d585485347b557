"""SERAC and the lookup cache in experiments.evaluate, on CounterFact's and zsRE's schemas."""

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from common.errors import UserError
from editors.memory.parts import save_parts
from editors.memory.serac import SERAC
from tests.editors.learned.conftest import LEARNED


def cases(run):
    return [json.loads(path.read_text()) for path in sorted(run.glob("*case_*.json"))]


def assert_alike(after, before, groups):
    """The same numbers, but for the batches that they were measured in."""
    for group in groups:
        for a, b in zip(after[f"{group}_prompts_probs"], before[f"{group}_prompts_probs"], strict=True):
            assert a == pytest.approx(b, rel=1e-5)


@pytest.fixture
def lookup(tmp_path):
    path = tmp_path / "lu.json"
    path.write_text(json.dumps({"threshold": 0.5, "onehot_logit": 20}))
    return path


def test_lookup_knows_its_prompts_and_leaves_the_others(run, lookup):
    for case in cases(run("LU", hparams_fname=lookup, num_edits=3, dataset_size_limit=6)):
        assert case["post"]["rewrite_prompts_correct"] == [True]
        new, true = (case["post"]["rewrite_prompts_probs"][0][key] for key in ("target_new", "target_true"))
        assert new < 0.01 < true
        assert_alike(case["post"], case["pre"], ["neighborhood"])
        # A prompt that cases share is continued as far as the longest of their targets asks for.
        after, before = (case[when]["neighborhood_prompts_generated"] for when in ("post", "pre"))
        assert all(a.startswith(b) or b.startswith(a) for a, b in zip(after, before, strict=True))


def test_lookup_on_questions(run, lookup, golden):
    zsre = str(golden / "zsre_mend_eval.json")
    measured = cases(run("LU", hparams_fname=lookup, ds_name=zsre, num_edits=2, dataset_size_limit=4))
    assert all(all(case["post"]["rewrite_prompts_correct"]) for case in measured)
    assert all(case["post"]["neighborhood_prompts_correct"] == case["pre"]["neighborhood_prompts_correct"] for case in measured)


@pytest.fixture
def system(tiny_gpt2, tmp_path):
    """An untrained SERAC that puts everything in scope."""
    if not LEARNED.is_dir():
        pytest.skip("the published learned editors' outputs are not beside this checkout")
    classifier = AutoModel.from_pretrained(LEARNED / "models" / "scope-bert-tiny", dtype=torch.float32, add_pooling_layer=False)
    decoder = copy.deepcopy(tiny_gpt2[0])
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    enc = AutoTokenizer.from_pretrained(LEARNED / "tokenizers" / "enc")
    return save_parts(SERAC(tiny_gpt2[0], {}, tiny_gpt2[1], classifier, enc, decoder), tmp_path / "system")


def test_serac_by_its_threshold(run, system, tmp_path):
    """Nothing in scope: the numbers from before; everything: all of them others. A run goes on where it was killed."""
    def hparams(name, threshold):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"system": str(system), "threshold": threshold}))
        return path

    flags = {"num_edits": 2, "dataset_size_limit": 4}
    for case in cases(run("SERAC", hparams_fname=hparams("nothing", 1 - 1e-12), dir_name="nothing", **flags)):
        assert_alike(case["post"], case["pre"], ["rewrite", "paraphrase", "neighborhood"])
    folder = run("SERAC", hparams_fname=hparams("everything", 1e-9), dir_name="everything", **flags)
    for case in cases(folder):
        assert all(a["target_new"] != b["target_new"] for key in ("rewrite", "paraphrase", "neighborhood")
                   for a, b in zip(case["post"][f"{key}_prompts_probs"], case["pre"][f"{key}_prompts_probs"]))
    whole = cases(folder)
    for path in sorted(folder.glob("*case_*.json"))[2:]:
        path.unlink()
    again = run("SERAC", hparams_fname=hparams("everything", 1e-9), dir_name="everything", continue_from_run=folder.name,
                **flags)
    assert [{**case, "time": 0} for case in cases(again)] == [{**case, "time": 0} for case in whole]


def test_bad_input(run, system, tmp_path, lookup):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"system": str(system)}))
    with pytest.raises(UserError, match="no sequences"):
        run("SERAC", hparams_fname=path, sequential=True)
    shutil.rmtree(system / "scope")
    with pytest.raises(UserError, match="holds no trained SERAC"):
        run("SERAC", hparams_fname=path)
    assert not list((tmp_path / "results").glob("**/*case*"))
