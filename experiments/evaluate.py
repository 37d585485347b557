"""``python -m experiments.evaluate``: apply an editor to a data set, batch by batch, and measure each case before and after.

    python -m experiments.evaluate --alg_name MEMIT --num_edits 100 --dataset_size_limit 100     # the built-in world
    python -m experiments.evaluate --alg_name ROME --model_name gpt2-xl --hparams_fname gpt2-xl.json --ds_name mcf

Consecutive batches of ``num_edits`` records are edited into the unmodified model, one batch after another (each is taken out
again, bit by bit, before the next). Results: see :mod:`experiments.results.run_folder`. A run that was killed at any moment
goes on with ``--continue_from_run run_<NNN>`` and ends with the same numbers: a batch is done anew unless all its files are
there, and everything is computed in groups that only the data and ``num_edits`` decide. So several processes
(``torchrun --nproc_per_node=4 -m experiments.evaluate ...``) end with the same numbers, too.
"""

import dataclasses
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import held
from common.programs import goes_on
from editors.core import ranks
from editors.core.recall import TargetNotReached
from experiments.results import run_folder
from experiments.run import batches, language_job, languages, sequences
from experiments.run.cli import run_program
from experiments.run.config import command_line, RunConfig
from experiments.run.job import Loaded, prepare, RunJob


def main(config: RunConfig | str | None = None, model_name: str | Loaded | None = None, **keywords: Any) -> Path:
    """Evaluates an editor as the command line does (whose help explains the flags); returns the run's folder.

    config: the whole configuration, in which ``model_name`` and ``keywords`` are changes; or the editor's name, alg_name.
    model_name: may be a (model, tok) pair.

    Raises UserError for a user's mistake; nothing is then left behind by a run that had not finished a batch.
    """
    loaded = None if model_name is None or isinstance(model_name, str) else model_name
    if model_name is not None:
        keywords["model_name"] = model_name if loaded is None else loaded[0].config._name_or_path
    if isinstance(config, str):
        config, keywords["alg_name"] = None, config
    config = (RunConfig(**keywords) if config is None else dataclasses.replace(config, **keywords)).complete()
    if config.language and ranks.processes() > 1:
        raise UserError("--language: such a run is not shared among processes; start it with python -m, not with torchrun")
    folder, earlier = Path(config.results_dir) / config.dir_name, None
    if config.continue_from_run is not None:
        earlier = ranks.from_first(lambda: run_folder.existing_run(folder, config.continue_from_run))

    with config.folders(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TargetNotReached)  # of thousands of batches; what the edits reach is what is measured
        job = ranks.in_turn(lambda: (language_job.prepare if config.language else prepare)(config, loaded))
        run = ranks.from_first(lambda: open_run(folder, job, earlier))
        try:
            with ExitStack() as stack:
                ranks.from_first(lambda: stack.enter_context(held(run, f"working at this run, {run.name}")) and None)
                stack.enter_context(goes_on(lambda: f"what is done is in {run}; go on with the same command and "
                                                    f"--continue_from_run {run.name}"))
                (languages if job.languages else sequences if config.sequential else batches).evaluate(job, run)
        except ranks.RankLost as error:
            error.args = (f"{error}, with --continue_from_run {run.name}",)
            raise
        except UserError:
            if earlier is None and ranks.process() == 0:
                run_folder.remove_unused(run)
            raise
    return run


def open_run(folder: Path, job: RunJob, earlier: Path | None) -> Path:
    """The folder of a new run, with params.json and run.json; or ``earlier``, if that is of the same configuration."""
    settings = job.settings()
    if earlier is not None:
        run_folder.check_same(earlier, run_folder.read_json(earlier / run_folder.PARAMS), job.hparams)
        about = run_folder.read_about(earlier)
        run_folder.check_same(earlier, about["settings"], settings)
        job.config.check_continued(earlier, about["flags"])
        return earlier
    cases = len(job.records) - (job.config.num_edits if job.config.eval_on_others else 0)
    about = {"settings": settings, "flags": job.config.flags(), "cases": cases, **run_folder.provenance()}
    if job.traced:
        about["traced"] = job.traced
    stages = languages.run_files(job, about) if job.languages else {}
    return run_folder.new_run(folder, {run_folder.PARAMS: job.hparams, run_folder.RUN: about, **stages})


def command(**defaults: Any) -> None:
    """The program; defaults: of flags, where another name for it has others."""
    parser = command_line(__doc__.split("\n\n")[0])
    parser.set_defaults(**defaults)
    run = main(RunConfig(**vars(parser.parse_args())))
    print(f"results: {run}")


if __name__ == "__main__":
    run_program(command, several=True)
