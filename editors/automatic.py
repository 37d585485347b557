"""An editor for a model without hyper-parameters of its own: the editor's usual values, and layers from causal tracing."""

import json
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from .base import Editor
from .core import ranks
from .core.corpus import find_corpus
from .core.covariance import keys_for
from .core.decoder import Decoder
from .core.tracing.averages import LAST_SUBJECT, FactScores, averages, proposal
from .core.tracing.noise import calibrate
from .core.tracing.prompts import KnownFact, trace_prompts
from .core.tracing.scores import blocks, default_window, trace
from .registry import editor_class

VALUES = Path(__file__).resolve().parents[1] / "hparams" / "auto.json"
"""{editor: its values}; as layers "peak", one block, or "range", those around it; <key>_per_width: times the keys' width."""
PER_WIDTH = "_per_width"
NOISE = "s3"
FACTS, TRIED, LEAST = 100, 400, 10
"""Known facts that are traced; facts among which they are looked for; fewer are not enough."""
PUBLISHED = "data:known_facts"
"""The function, named by text, that reads the published known facts."""


class NoValues(UserError):
    """An editor that hparams/auto.json has no values for."""


class TooFewKnown(UserError):
    """A model that does not know enough of the facts to be traced."""


def auto(
    name: str, model: PreTrainedModel, tok: PreTrainedTokenizerBase, facts: Sequence[KnownFact] | None = None, **changes: Any
) -> Editor:
    """The editor called `name` with hyper-parameters proposed for this model, as ``--hparams_fname auto`` proposes them.

    facts: what the model may know (up to 100 that it does know are traced); by default the published known_1000.
    changes: other hyper-parameters, in the place of the usual ones; with ``layers`` nothing is traced.
    Raises UserError for an editor without usual values, a change that is none, and facts that the model does not know; what can
    be told before the trace is.
    """
    values = usual_values(name)
    hparams_class = editor_class(name).hparams_class
    plain = {key.removesuffix(PER_WIDTH): value for key, value in values.items()} | {"layers": [0]} | changes
    if dataset := getattr(hparams_class.of(plain), "mom2_dataset", None):
        find_corpus(dataset)
    if "layers" in changes:
        traced = {"peak": changes["layers"][0], "range": changes["layers"]}
    else:
        source = "known_1000" if facts is None else "the list given"
        facts = pkgutil.resolve_name(PUBLISHED)(limit=TRIED) if facts is None else facts
        try:
            traced = propose(model, tok, facts, source)
        except TooFewKnown as error:
            raise TooFewKnown(f"{error}; give others as facts=, or layers=") from None
    return editor_class(name)(hparams_class.of(with_layers(values, traced, model, tok) | changes))


def has_values(name: str) -> bool:
    """Whether the editor has usual values."""
    return (editor_class(name).hparams_folder or name) in _table()


def usual_values(name: str) -> dict[str, Any]:
    """The editor's values, as :data:`VALUES` says. Raises NoValues where there are none."""
    if not has_values(name):
        raise NoValues(f"there are no values for {name}, only for {', '.join(_table())}")
    return _table()[editor_class(name).hparams_folder or name]


def _table() -> dict[str, dict[str, Any]]:
    return json.loads(VALUES.read_text())


def with_layers(
    values: Mapping[str, Any], traced: Mapping[str, Any], model: PreTrainedModel, tok: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Usual values as a file of hyper-parameters holds them: at the layers of a trace, and for keys as wide as the model's."""
    layers = traced["range"] if values["layers"] == "range" else [traced["peak"]]
    hparams = {key: value for key, value in values.items() if not key.endswith(PER_WIDTH)} | {"layers": layers}
    d_in = Decoder.of(model, tok).weight(layers[0]).d_in
    return hparams | {key.removesuffix(PER_WIDTH): keys_for(value, d_in) for key, value in values.items()
                      if key.endswith(PER_WIDTH)}


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
        raise TooFewKnown(f"the model knows only {len(known_facts)} of the first {len(prompts)} facts of {source}, and {LEAST} "
                          "are needed")
    average = averages(known_facts)
    effects = [round(value, 4) for value in average["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT]]
    return {**proposal(average), "facts": len(known_facts), "source": source, "effects": effects,
            "window": default_window(decoder.sites.layers), "noise_level": NOISE, **measured}
