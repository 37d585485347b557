"""What tests/experiments/run/test_ranks.py runs in one process and, by torchrun, in several: `several.py FOLDER PART...`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from common.errors import UserError
from editors.core import covariance, ranks, value_rows
from experiments import collect_stats, evaluate
from experiments.metrics import incremental
from experiments.run.cli import run_program
from tests.conftest import GOLDEN, load_tiny

torch.set_num_threads(1)


def main(folder: Path, *parts: str) -> None:
    for part in parts:
        PARTS[part](folder)


def primitives(folder: Path) -> None:
    """Everything in ranks.py, from the inside of a process."""
    rank, world_size = ranks.rank(), ranks.world_size()
    assert rank == ranks.process() == int(os.environ["RANK"])
    assert world_size == ranks.processes() == int(os.environ["WORLD_SIZE"])
    done = []
    assert ranks.each(lambda unit: done.append(unit) or unit**2, list(range(7))) == [n**2 for n in range(7)]
    assert done == list(range(rank, 7, world_size))
    tensor, = ranks.each(lambda unit: {"a": [torch.full((2,), float(unit))]}, [5])
    assert torch.equal(tensor["a"][0], torch.tensor([5.0, 5.0]))
    assert ranks.each(lambda unit: unit, []) == []
    assert ranks.each(lambda unit: ranks.world_size(), [0, 0, 0, 0]) == [1] * 4  # alone within a unit
    with ranks.alone():
        assert (ranks.rank(), ranks.world_size()) == (0, 1) and ranks.from_first(lambda: rank) == rank
    assert ranks.from_first(lambda: rank) == 0 and ranks.same(rank) == 0
    order = folder / "order"
    ranks.in_turn(lambda: order.open("a").write("0\n" if rank == 0 else "later\n"))
    ranks.barrier()
    assert order.read_text().splitlines() == ["0"] + ["later"] * (world_size - 1)

    total = [torch.zeros(3)]  # 1e8 + (1 - 1e8) + 1: other orders of addition give other sums
    ranks.add_in_order(total, [torch.tensor([{0: 1e8, 1: 1 - 1e8}.get(rank, 1.0), 1.0, rank])])
    if rank == 0:
        in_order = float((torch.tensor(1e8) + torch.tensor(1.0 - 1e8)) + (world_size - 2))
        assert total[0].tolist() == [in_order, world_size, sum(range(world_size))]

    def fail(unit):
        if unit == 1:
            raise UserError(f"unit {unit} is wrong")

    calls = [lambda: ranks.each(fail, [0, 1, 2]), lambda: ranks.from_first(lambda: fail(1)),
             lambda: ranks.in_turn(lambda: fail(world_size - rank))]
    for call in calls:
        try:
            call()
        except UserError as error:
            assert str(error) == "unit 1 is wrong" and error.of_all_ranks
        else:
            raise AssertionError("no error")
    try:
        ranks.each(lambda unit: unit, [0] * (3 + rank))
    except UserError as error:
        assert "see different work" in str(error)
    else:
        raise AssertionError("no error")


def evaluations(folder: Path) -> None:
    """Batches apart, one batch together, a sequence, statistics: small, but cut into units enough for three processes."""
    value_rows.MOST_CPU, covariance.SEGMENT, covariance.SNAPSHOT_SECONDS = 2, 2, 0.0
    model, tok = ranks.in_turn(lambda: load_tiny("tiny-gpt2"))
    incremental.token_budget = lambda model, most=None: 300
    common = {"model_name": (model, tok), "ds_name": str(GOLDEN / "multi_counterfact.json"), "dataset_size_limit": 6,
              "results_dir": folder, "data_dir": folder / "data"}
    no_texts = {"skip_generation_tests": True}
    memit, alphaedit = hparams(folder, "MEMIT"), hparams(folder, "AlphaEdit", drop=("mom2_update_weight",), L2=10)
    evaluate.main("MEMIT", hparams_fname=memit, num_edits=2, generation_test_interval=6, dir_name="apart", **common)
    evaluate.main("MEMIT", hparams_fname=memit, num_edits=6, dir_name="together", use_cache=True, **common, **no_texts)
    evaluate.main("AlphaEdit", hparams_fname=alphaedit, num_edits=3, dir_name="sequence", sequential=True, history_eval_steps=1,
                  perplexity_corpus=str(GOLDEN / "corpus.jsonl"), **common, **no_texts)
    collect_stats.main(["--model_name", str(GOLDEN / "tiny-gpt2"), "--dataset", str(GOLDEN / "corpus.jsonl"), "--layers", "4",
                        "--sample_size", "60", "--pack_tokens", "100", "--stats_dir", str(folder / "stats"), "--device", "cpu"])


def dying(folder: Path) -> None:
    """The second process is killed after its second case, in the midst of a run."""
    write_cases = evaluate.run_folder.write_cases
    written = []

    def write(run, num_edits, chunk, *rest):
        write_cases(run, num_edits, chunk, *rest)
        written.extend(chunk)
        if ranks.process() == 1 and len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate.run_folder.write_cases = write
    killed(folder)


def killed(folder: Path, **flags) -> Path:
    model_and_tok = ranks.in_turn(lambda: load_tiny("tiny-gpt2"))
    return evaluate.main("FT", model_name=model_and_tok, hparams_fname=hparams(folder, "FT"), num_edits=1,
                         skip_generation_tests=True, ds_name=str(GOLDEN / "multi_counterfact.json"), results_dir=folder,
                         data_dir=folder / "data", **flags)


def hparams(folder: Path, alg_name: str, drop: tuple[str, ...] = (), **changes) -> Path:
    example = "FT" if alg_name == "FT" else "MEMIT"
    values = json.loads((GOLDEN / "results_example" / example / "run_000" / "params.json").read_text())
    if example == "MEMIT":
        values |= {"mom2_dataset": str(GOLDEN / "corpus.jsonl"), "mom2_n_samples": 100, "v_num_grad_steps": 5}
    path = folder / f"{alg_name}.json"
    ranks.from_first(lambda: path.write_text(json.dumps({k: v for k, v in values.items() if k not in drop} | changes)))
    return path


PARTS = {"primitives": primitives, "evaluations": evaluations, "dying": dying}

if __name__ == "__main__":
    run_program(lambda: main(Path(sys.argv[1]), *sys.argv[2:]), several=True)
