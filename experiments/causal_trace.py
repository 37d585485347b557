"""``python -m experiments.causal_trace``: where a model keeps facts, by restoring hidden states under noise (causal tracing).

    python -m experiments.causal_trace --dataset_size_limit 100                 # the built-in world and its facts
    python -m experiments.causal_trace --model_name gpt2-xl --noise_level 0.1   # known_1000, as published
    python -m figures.causal_trace results/ns3_r0_world/causal_trace            # heat maps

Each prompt runs with noise on its subject's embeddings; then one hidden state, or the MLPs or attentions of a window of blocks,
is put back at one token, and the answer's probability says what came back with it. Results: run.json (settings, identity of
model and facts), cases/knowledge_<id>[_mlp|_attn].npz as published, averages.json (average indirect effects, 95 % bands,
proposed layers to edit). Run again, a killed program goes on where it stopped.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.programs import goes_on
from editors.core.decoder import Decoder
from editors.core.fingerprint import tokenizer_fingerprint
from experiments.results import run_folder
from experiments.run.cli import a_seed, at_least_one, HelpFormatter, Parser, run_program
from experiments.run.config import add_flags, FolderFlags, ModelFlags
from experiments.run.models import check_readable, identity, load_model
from experiments.tracing import files
from editors.core.tracing.averages import averages, proposal
from experiments.tracing.facts import PUBLISHED, load_facts
from editors.core.tracing.noise import calibrate, parse
from editors.core.tracing.noise import KINDS as NOISE_KINDS
from editors.core.tracing.prompts import trace_prompts
from editors.core.tracing.scores import KINDS, SEVERED, blocks, default_window, trace


def main(
    model_name: str | tuple[PreTrainedModel, PreTrainedTokenizerBase] = "world",
    fact_file: str | Path | None = None,
    output_dir: str | Path = "results/{model_name}/causal_trace",
    noise_level: str = "s3",
    replace: int = 0,
    window: int | None = None,
    samples: int = 10,
    severed: bool = False,
    dataset_size_limit: int | None = None,
    noise_corpus: str | None = None,
    seed: int = 1,
    dtype: str = "auto",
    device: str = "auto",
    data_dir: str | Path | None = None,
) -> Path:
    """Traces facts as the command line does (whose help explains the arguments); returns the folder of the results.

    ``model_name`` may be a (model, tok) pair. Raises UserError for a user's mistake.
    """
    parse(noise_level)
    name = model_name if isinstance(model_name, str) else model_name[0].config._name_or_path
    source = str(fact_file or ("world" if name == "world" else PUBLISHED))
    facts = load_facts(source, data_dir, dataset_size_limit)
    model, tok = load_model(model_name, dtype, device) if isinstance(model_name, str) else model_name
    check_readable(model, "causal tracing")
    decoder = Decoder.of(model, tok)
    sites = decoder.sites
    window = window or default_window(sites.layers)
    if window > sites.layers:
        raise UserError(f"--window {window}: the model has only {sites.layers} blocks")
    prompts = trace_prompts(tok, facts, decoder.positions)
    corpus, subjects = _corpus(noise_corpus, name, data_dir), [fact.subject for fact in facts]
    noise, measured = calibrate(noise_level, model, tok, subjects, corpus, samples, seed)

    settings = {
        "model": f"{Path(name).name}, {identity(model)}", "tokenizer": tokenizer_fingerprint(tok),
        "dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type, "noise_level": noise_level,
        "replace": replace, "severed": severed, "window": window, "samples": samples, "seed": seed,
        "noise_corpus": measured.get("corpus"),
        "facts": f"{Path(source).name}, {len(facts)} facts, sha256 {_fingerprint(facts)}"}
    about = {"settings": settings, "noise": measured, "layers": sites.layers, "cases": len(facts), **run_folder.provenance(),
             "flags": {"model_name": name, "fact_file": source, "dataset_size_limit": dataset_size_limit}}
    folder = Path(str(output_dir).replace("{model_name}", f"n{noise_level}_r{replace}_{name.replace('/', '_')}"))
    _check(folder, settings)

    kinds = (*KINDS, *SEVERED) if severed else tuple(KINDS)
    how = f"the facts traced so far are in {folder}: the same command goes on"
    with goes_on(lambda: how), tqdm(total=len(prompts), desc="tracing", unit="fact") as bar:
        for block in blocks(prompts, decoder, samples):
            paths = [path for prompt in block for path in files.case_paths(folder, prompt.fact.known_id, kinds).values()]
            if not all(path.exists() for path in paths):
                traces = trace(decoder, block, noise, bool(replace), kinds, window)
                if not (folder / run_folder.RUN).exists():  # only now: noise that the model can't stand leaves nothing behind
                    run_folder.write_json(folder / run_folder.RUN, about)
                for traced in traces:
                    files.write_case(folder, tok, traced, window, kinds)
            bar.update(len(block))
    average = averages(files.known_facts(folder, [prompt.fact.known_id for prompt in prompts], kinds, sites.layers))
    average["proposal"] = proposal(average)
    run_folder.write_json(folder / files.AVERAGES, {"settings": settings, "of": len(prompts), **average})
    return folder


def summary(folder: Path) -> str:
    """What averages.json says, in a few lines."""
    average = run_folder.read_json(folder / files.AVERAGES)
    total, layers = average["total_effect"], average["proposal"]
    band = f" ± {total['band']:.3f}" if total["band"] is not None else ""
    lines = [f"{average['facts']} of {average['of']} facts known; probability of the answer {average['high']:.3f}, "
             f"under noise {average['low']:.3f}; average total effect {total['mean']:.3f}{band}"]
    for kind, effect in average["indirect_effect"].items():
        rows = {name: row for name, row in zip(average["classes"], effect["mean"]) if row}
        peaks = [f"{max(rows[name]):.3f} at the {name} (block {rows[name].index(max(rows[name]))})"
                 for name in ("last subject token", "last token") if name in rows]
        lines.append(f"{kind}: largest average indirect effects {', '.join(peaks)}")
    lines.append(f"proposed layers to edit: {', '.join(map(str, layers['range']))} (one layer: {layers['peak']})")
    return "\n".join(lines)


def _check(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError for a folder that holds anything but a trace of the same settings."""
    if (folder / run_folder.RUN).exists():
        saved = run_folder.read_json(folder / run_folder.RUN)
        if not run_folder.has_form(saved, {"settings": dict}):
            raise UserError(f"{folder / run_folder.RUN}: was not written by experiments.causal_trace; "
                               "choose another --output_dir")
        run_folder.check_same(folder, saved["settings"], settings)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files but no {run_folder.RUN}; choose another --output_dir")


def _corpus(name: str | None, model_name: str, data_dir: str | Path | None) -> str:
    if name == "world" or name is None and model_name == "world":
        from data import world
        return str(world.corpus_path(data_dir))
    return name or "wikitext"


def _fingerprint(facts: Sequence) -> str:
    return hashlib.sha256(json.dumps([vars(fact) for fact in facts]).encode()).hexdigest()[:16]


def command() -> None:
    parser = Parser(prog="python -m experiments.causal_trace", description=__doc__.split("\n\n")[0],
                    formatter_class=HelpFormatter)
    add_flags(parser, ModelFlags)
    parser.add_argument("--fact_file", help="known_1000; the true facts of world, mcf or cf; or the path of a .json file in "
                                            "the schema of one of them; by default world for the model world, else known_1000")
    parser.add_argument("--output_dir", default="results/{model_name}/causal_trace",
                        help="folder of the results; {model_name} stands for n<noise>_r<replace>_<model>")
    parser.add_argument("--noise_level", default="s3", help=f"{NOISE_KINDS} (see editors/core/tracing/noise.py)")
    parser.add_argument("--replace", type=int, choices=(0, 1), default=0,
                        help="1: noise replaces the embeddings instead of being added")
    parser.add_argument("--window", type=at_least_one, help="blocks whose MLPs or attentions are restored together; by default "
                                                            "10, and a quarter of the blocks on models of fewer than 24")
    parser.add_argument("--samples", type=at_least_one, default=10, help="noisy copies of a prompt")
    parser.add_argument("--severed", action="store_true",
                        help="also restore states with the MLPs, or the attentions, of later blocks kept corrupted there")
    parser.add_argument("--dataset_size_limit", type=at_least_one, help="only the first so many facts")
    parser.add_argument("--noise_corpus", help="texts that the noise levels m and t are measured on: wikitext, "
                                               "owner/name[:config], world, or a .jsonl or .txt file; by default world for the "
                                               "model world, else wikitext")
    parser.add_argument("--seed", type=_small_seed, default=1, help="of the noise")
    add_flags(parser, FolderFlags, "data_dir")
    folder = main(**vars(parser.parse_args()))
    print(summary(folder))
    print(f"results: {folder}")


def _small_seed(text: str) -> int:
    if a_seed(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} should be below 2^32")
    return int(text)


if __name__ == "__main__":
    run_program(command)
