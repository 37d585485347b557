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

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data import KnownFact
import data
from data.download import data_folder
import editors
from editors.closed_form.statistics import keys_for
from editors.core import ranks
from editors.core.corpus import find_corpus
from editors.core.covariance import folder_of
from editors.core.decoder import Decoder
from editors.core.fingerprint import tokenizer_fingerprint
from experiments.results import run_folder
from experiments.run.config import RunConfig
from experiments.run.hparams_file import AUTO_VALUES, AUTOMATIC, changed, world_corpus
from experiments.run.models import identity
from experiments.tracing.averages import LAST_SUBJECT, FactScores, averages, proposal
from experiments.tracing.facts import PUBLISHED, load_facts
from experiments.tracing.files import read_averages
from experiments.tracing.noise import calibrate
from experiments.tracing.prompts import trace_prompts
from experiments.tracing.scores import blocks, default_window, trace

VALUES = AUTO_VALUES
"""{editor: its values}; as layers "peak", one block, or "range", those around it; <key>_per_width: times the keys' width."""
PER_WIDTH = "_per_width"
NOISE = "s3"
FACTS, TRIED, LEAST = 100, 400, 10
"""Known facts that are traced; facts among which they are looked for; fewer are not enough."""


class TooFewKnown(UserError):
    """A model that does not know enough of the facts to be traced."""


def propose_hparams(
    config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(hyper-parameters as a file would hold them, what the layers follow from); says so in a line.

    Raises UserError for an editor without values, a trace of another model, or facts that the model does not
    know.
    """
    alg_name, name = config.alg_name, str(config.hparams_fname)
    table, editor = run_folder.read_json(VALUES), editors.editor_class(alg_name)
    values = table.get(editor.hparams_folder or alg_name)
    if values is None:
        raise UserError(f"--hparams_fname {AUTOMATIC}: there are no values for {alg_name}, only for {', '.join(table)}; "
                        "name a file")
    if config.model_name == "world" and "mom2_dataset" in values:
        values = values | {"mom2_dataset": "world", "mom2_n_samples": 5000}
    _check_statistics(config, model, values)
    if ":" in name:
        traced = _saved(Path(name.partition(":")[2]), model)
    else:
        traced = _traced(config, model, tok)
    layers = traced["range"] if values["layers"] == "range" else [traced["peak"]]
    if ranks.process() == 0:
        print(f"layers {', '.join(map(str, layers))} for {alg_name}: where MLPs at the subject's last token bring most back of "
              f"{traced['facts']} facts of {traced['source']}; all other values from hparams/{VALUES.name}")
    decoder = Decoder.of(model, tok)
    hparams = {key: value for key, value in values.items() if not key.endswith(PER_WIDTH)} | {"layers": layers}
    for key, value in values.items():
        if key.endswith(PER_WIDTH):
            hparams[key.removesuffix(PER_WIDTH)] = keys_for(value, decoder.weight(layers[0]).d_in)
    return changed(config, hparams), traced


def _check_statistics(config: RunConfig, model: PreTrainedModel, values: Mapping[str, Any]) -> None:
    """Before anything long: raises UserError for a --set that is wrong, and where neither the corpus nor statistics of it are
    there."""
    plain = {key.removesuffix(PER_WIDTH): value for key, value in values.items()} | {"layers": [0]}
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


def propose(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, facts: Sequence[KnownFact], source: str
) -> dict[str, Any]:
    """{"peak", "range", "facts", "source", "effects": average indirect effect of each block's window of MLPs, ...}.

    Only that of the subject's last token is traced. Raises TooFewKnown where the model knows too few of the facts.
    """
    decoder = Decoder.of(model, tok)
    prompts = trace_prompts(tok, facts, decoder.positions)
    noise, measured = calibrate(NOISE, model, tok, [fact.subject for fact in facts], corpus="")
    known_facts: list[FactScores] = []
    trace_blocks = list(blocks(prompts, decoder, noise.samples))
    for block in tqdm(trace_blocks, desc="tracing", unit="block", leave=False, disable=ranks.process() > 0):
        for traced in trace(decoder, block, noise, kinds=("mlp",), subject_last=True):
            if traced.correct and len(known_facts) < FACTS:
                subject = traced.prompt.start, traced.prompt.end
                known_facts.append(FactScores(subject, traced.high, traced.low, traced.scores))
        if len(known_facts) == FACTS:
            break
    if len(known_facts) < LEAST:
        raise TooFewKnown(f"--hparams_fname {AUTOMATIC}: the model knows only {len(known_facts)} of the first {len(prompts)} "
                        f"facts of {source}, and {LEAST} are needed; trace others with experiments.causal_trace and give "
                        f"{AUTOMATIC}:FOLDER, or name a file")
    average = averages(known_facts)
    effects = [round(value, 4) for value in average["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT]]
    return {**proposal(average), "facts": len(known_facts), "source": source, "effects": effects,
            "window": default_window(decoder.sites.layers), "noise_level": NOISE, **measured}


def _traced(config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Of the data set's own true answers; of the published known facts where it has none (zsRE) or the model knows too few."""
    source, folder = config.ds_name, config.data_dir
    if source.partition(":")[0] in data.WORLDS:
        source = source.replace("-zsre", "")
    elif data.load(source, folder, limit=1)[0].schema == "zsre":
        source = PUBLISHED
    facts = load_facts(source, folder, TRIED)
    try:
        return _kept(config, model, tok, facts, source)
    except TooFewKnown as error:
        if source == PUBLISHED or source.partition(":")[0] in data.WORLDS:
            raise
        try:
            facts = load_facts(PUBLISHED, folder, TRIED)
        except UserError as missing:
            raise UserError(f"{error}; the published known facts can't be had either ({missing})") from None
        if ranks.process() == 0:
            print(f"the model knows too few facts of {source}: those of {PUBLISHED} are traced")
        return _kept(config, model, tok, facts, PUBLISHED)


def _kept(
    config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase, facts: Sequence[KnownFact], source: str
) -> dict[str, Any]:
    """What `propose` gives, from the data folder where the same model, facts and settings have been traced before."""
    about = [identity(model), str(model.dtype), tokenizer_fingerprint(tok), [vars(fact) for fact in facts], source, NOISE,
             FACTS, LEAST]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = data_folder(config.data_dir) / "traces" / f"{digest}.json"
    if ranks.from_first(path.is_file):
        if ranks.process() == 0:
            print(f"trace: {path}, of an earlier run")
        return run_folder.read_json(path)
    traced = propose(model, tok, facts, source)
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
