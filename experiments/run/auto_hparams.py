"""Hyper-parameters for a model without a file: the editor's usual values, and layers from causal tracing.

``--hparams_fname auto`` traces facts of the data set that is edited; ``auto:FOLDER`` takes what
``python -m experiments.causal_trace`` has found. A trace is kept in the data folder, for other runs of the same model and
facts. params.json has the result, so a run says what it was made with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data import KnownFact
import data
from data.download import data_folder
from editors import automatic
from editors.automatic import TooFewKnown
from editors.core import ranks
from editors.core.corpus import find_corpus
from editors.core.covariance import folder_of
from editors.core.fingerprint import tokenizer_fingerprint
from editors.core.tracing.averages import LAST_SUBJECT
from experiments.results import run_folder
from experiments.run.config import RunConfig
from experiments.run.hparams_file import AUTOMATIC, changed, world_corpus
from experiments.run.models import identity
from experiments.tracing.facts import PUBLISHED, load_facts
from experiments.tracing.files import read_averages


def propose_hparams(
    config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(hyper-parameters as a file would hold them, what the layers follow from); says so in a line.

    Raises UserError for an editor without values, a trace of another model, or facts that the model does not
    know.
    """
    alg_name, name = config.alg_name, str(config.hparams_fname)
    try:
        values = automatic.usual_values(alg_name)
    except automatic.NoValues as error:
        raise UserError(f"--hparams_fname {AUTOMATIC}: {error}; name a file") from None
    if config.model_name == "world" and "mom2_dataset" in values:
        values = values | {"mom2_dataset": "world", "mom2_n_samples": 5000}
    _check_statistics(config, model, values)
    if ":" in name:
        traced = _saved(Path(name.partition(":")[2]), model)
    else:
        traced = _traced(config, model, tok)
    hparams = automatic.with_layers(values, traced, model, tok)
    if ranks.process() == 0:
        layers = ", ".join(map(str, hparams["layers"]))
        print(f"layers {layers} for {alg_name}: where MLPs at the subject's last token bring most back of {traced['facts']} "
              f"facts of {traced['source']}; all other values from hparams/{automatic.VALUES.name}")
    return changed(config, hparams), traced


def _check_statistics(config: RunConfig, model: PreTrainedModel, values: Mapping[str, Any]) -> None:
    """Before anything long: raises UserError for a --set that is wrong, and where neither the corpus nor statistics of it are
    there."""
    plain = {key.removesuffix(automatic.PER_WIDTH): value for key, value in values.items()} | {"layers": [0]}
    dataset = changed(config, plain).get("mom2_dataset")
    if dataset is None:
        return
    corpus = find_corpus(world_corpus(config) if dataset == "world" else dataset)
    if any(folder_of(model, corpus).glob("*")):
        return
    try:
        corpus.texts()
    except UserError as error:
        raise UserError(f"{error} (as in --set mom2_dataset=FILE)") from None


def _traced(config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Of the data set's own true answers; of the published known facts where it has none (zsRE) or the model knows too few."""
    source, folder = config.ds_name, config.data_dir
    if source.partition(":")[0] in data.WORLDS:
        source = source.replace("-zsre", "")
    elif data.load(source, folder, limit=1)[0].schema == "zsre":
        source = PUBLISHED
    facts = load_facts(source, folder, automatic.TRIED)
    try:
        return _kept(config, model, tok, facts, source)
    except TooFewKnown as error:
        if source == PUBLISHED or source.partition(":")[0] in data.WORLDS:
            raise
        try:
            facts = load_facts(PUBLISHED, folder, automatic.TRIED)
        except UserError as missing:
            raise UserError(f"{error}; the published known facts can't be had either ({missing})") from None
        if ranks.process() == 0:
            print(f"the model knows too few facts of {source}: those of {PUBLISHED} are traced")
        return _kept(config, model, tok, facts, PUBLISHED)


def _kept(
    config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase, facts: Sequence[KnownFact], source: str
) -> dict[str, Any]:
    """What `automatic.propose` gives, from the data folder where the same model, facts and settings have been traced before."""
    about = [identity(model), str(model.dtype), tokenizer_fingerprint(tok), [vars(fact) for fact in facts], source,
             automatic.NOISE, automatic.FACTS, automatic.LEAST]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = data_folder(config.data_dir) / "traces" / f"{digest}.json"
    if ranks.from_first(path.is_file):
        if ranks.process() == 0:
            print(f"trace: {path}, of an earlier run")
        return run_folder.read_json(path)
    try:
        traced = automatic.propose(model, tok, facts, source)
    except TooFewKnown as error:
        raise TooFewKnown(f"--hparams_fname {AUTOMATIC}: {error}; trace others with experiments.causal_trace and give "
                          f"{AUTOMATIC}:FOLDER, or name a file") from None
    if ranks.rank() == 0:
        run_folder.write_json(path, traced)
    return traced


def _saved(folder: Path, model: PreTrainedModel) -> dict[str, Any]:
    """What experiments.causal_trace found. Raises UserError if that is not there, or of another model or dtype."""
    average, weights, dtype = read_averages(folder), identity(model), str(model.dtype).removeprefix("torch.")
    settings = average["settings"]
    if not settings["model"].endswith(weights):
        raise UserError(f"--hparams_fname {AUTOMATIC}:{folder}: a trace of another model, or in another dtype "
                        f"({settings['model']}, {settings['dtype']}), not of this ({weights}, {dtype})")
    effects = [round(value, 4) for value in average["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT]]
    return {**average["proposal"], "facts": average["facts"], "source": str(folder), "effects": effects,
            "window": settings["window"], "noise_level": settings["noise_level"]}
