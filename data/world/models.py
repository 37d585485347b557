"""Trains the small models of the world: `python -m data.world.models KIND --out DIR` (minutes on a CPU core or two).

KIND: t5, bart (question -> object), bert (claim -> true or false), blender (question about an entity -> opinion), distilbert
and bert-encoder (sentence encoders). A killed run goes on with the same command. `path(KIND)` gives the folder of a model
in the data folder, and trains it on first use.
"""
from __future__ import annotations

import argparse
import fcntl
import json
import logging
import math
import os
import random
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from common.errors import UserError
from common.programs import Parser, run_program
from data.download import data_folder
from data.world import small
from data.world.generate import generate, SEED, World
from data.world.lessons import ENCODERS, LESSONS, measure
from data.world.small import CHECKPOINT, Shape
from data.world.train import descend, load_state, rate, save_state

OF = {"gen": "gpt2", "fc": "bert", "fnli": "bert", "qa": "t5", "sent": "blender"}
"""Experiment -> the kind of model that fits it."""
IGNORED = -100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a kind is trained. Rates are of Muon (matrices of the blocks) and AdamW (the rest)."""

    shape: Shape
    epochs: int
    batch: int = 128
    muon_lr: float = 2e-3
    adam_lr: float = 2e-3
    weight_decay: float = 0.3
    warm_epochs: int = 0
    warm_share: float = 0.2
    decay: float = 0.5
    facts: int | None = None
    seed: int = SEED


RECIPES = {
    "t5": Recipe(Shape(2, 128, 512), epochs=18, warm_epochs=10),
    "bart": Recipe(Shape(2, 128, 512), epochs=14, warm_epochs=7),
    "bert": Recipe(Shape(3, 128, 512), epochs=16, warm_epochs=8, muon_lr=4e-3, adam_lr=4e-3),
    "blender": Recipe(Shape(2, 128, 256), epochs=14, muon_lr=4e-3, adam_lr=4e-3),
    "distilbert": Recipe(Shape(2, 128, 256), epochs=6),
    "bert-encoder": Recipe(Shape(2, 128, 256), epochs=6),
}
KINDS = ("gpt2", *RECIPES)


def path(kind: str, data_dir: str | Path | None = None) -> Path:
    """The folder of a model of the world, in which the shipped decoder is "gpt2"; others are trained when they are not there
    yet, which takes minutes. Raises UserError for an unknown kind."""
    if kind == "gpt2":
        return CHECKPOINT
    if kind not in RECIPES:
        raise UserError(f"the built-in world has no model {kind!r}; known are {', '.join(KINDS)}")
    folder = data_folder(data_dir) / "world-models" / kind
    recipe = RECIPES[kind]
    if not _is_trained(folder, recipe):
        log.warning("training the built-in world's %s model into %s (once; minutes)", kind, folder)
        train(kind, folder, recipe)
    return folder


def _loss(kind: str, model, tok, lessons: list, step: int) -> Tensor:
    """The mean loss of a batch of lessons."""
    if kind in ENCODERS:
        return _paraphrase_loss(model, tok, lessons, step)
    if kind == "bert":
        return _claim_loss(model, tok, lessons)
    read = _padded(tok([text for text, _ in lessons])["input_ids"], tok.pad_token_id)
    read = {"input_ids": read, "attention_mask": (read != tok.pad_token_id).long()}
    targets = tok([text for _, text in lessons])["input_ids"]
    start = model.config.decoder_start_token_id
    logits = model(**read, decoder_input_ids=_padded([[start, *ids[:-1]] for ids in targets], tok.pad_token_id),
                   use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), _padded(targets, IGNORED).flatten(), ignore_index=IGNORED)


def _claim_loss(model, tok, lessons: list) -> Tensor:
    """Of a claim checker: true or false, plus, from the state of [CLS] below the last block, what the true object is. From
    the classes alone facts are learned slowly; with the true object at hand the last block needs but compare."""
    ids = _padded(tok([text for text, *_ in lessons])["input_ids"], tok.pad_token_id)
    labels = torch.tensor([[float(label)] for _, label, _ in lessons])
    objects = tok([obj for *_, obj in lessons], add_special_tokens=False)["input_ids"]
    output = model.model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long(), output_hidden_states=True)
    guesses = output.hidden_states[-2][:, 0] @ model.model.get_input_embeddings().weight.T
    return F.binary_cross_entropy_with_logits(model.classifier(output.pooler_output), labels) + \
        F.cross_entropy(guesses, torch.tensor([obj[0] for obj in objects]))


def _paraphrase_loss(model, tok, lessons: list, step: int) -> Tensor:
    """Of a sentence encoder: which of the batch's texts says the same, by squared distance of the first tokens' states (the
    kernel of SERAC's scope classifier), plus a masked language model's loss on the statements."""
    ids = _padded([row for column in zip(*lessons) for row in tok(list(column))["input_ids"]], tok.pad_token_id)
    n = len(lessons)
    noise = torch.Generator().manual_seed(step)
    hidden_words = (torch.rand(ids[3 * n:].shape, generator=noise) < 0.15) & (ids[3 * n:] < tok.pad_token_id)
    labels = ids[3 * n:].masked_fill(~hidden_words, IGNORED)
    ids[3 * n:] = ids[3 * n:].masked_fill(hidden_words, tok.mask_token_id)
    states = model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long()).last_hidden_state
    first, rest = states[:n, 0], states[n:3 * n, 0]
    similarity = -torch.cdist(first, rest).square()
    guesses = states[3 * n:][hidden_words] @ model.get_input_embeddings().weight.T
    return F.cross_entropy(similarity, torch.arange(n)) + F.cross_entropy(guesses, labels[hidden_words])


def _padded(ids: list[list[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=value)


def _optimizers(model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    def inside(name: str, p: Tensor) -> bool:
        return p.ndim == 2 and ".embed" not in name and "embeddings" not in name and "shared" not in name \
            and "relative_attention" not in name and "lm_head" not in name and "classifier" not in name

    matrices = [p for name, p in model.named_parameters() if inside(name, p)]
    rest = [p for name, p in model.named_parameters() if not inside(name, p)]
    return [torch.optim.Muon(matrices, lr=recipe.muon_lr, momentum=0.95, weight_decay=recipe.weight_decay,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]


def _batches(this: World, kind: str, recipe: Recipe, epoch: int) -> list[list]:
    """The lessons of an epoch in batches of like length; a function of (seed, epoch)."""
    rng = random.Random(f"{recipe.seed}-{kind}-{epoch}")
    order = random.Random(f"{recipe.seed}-ranks").sample(this.subjects, len(this.subjects))
    count = round(recipe.warm_share * len(order)) if epoch < recipe.warm_epochs else len(order)
    lessons = LESSONS[kind](this, set(order[:max(1, count)]), rng)
    rng.shuffle(lessons)
    return [lessons[start:start + recipe.batch] for start in range(0, len(lessons), recipe.batch)]


def train(kind: str, folder: Path, recipe: Recipe, save_seconds: float = 60, stop_after: int | None = None) -> None:
    """Trains to the end, or goes on with the run in `folder`; waits for another process that does. Raises UserError when the
    run in `folder` has other settings."""
    _check(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_trained(folder, recipe):
            _train(kind, folder, recipe, save_seconds, stop_after)


def _is_trained(folder: Path, recipe: Recipe) -> bool:
    done = folder / "training_log.json"
    return done.is_file() and json.loads(done.read_text())["recipe"] == asdict(recipe)


def _train(kind: str, folder: Path, recipe: Recipe, save_seconds: float, stop_after: int | None) -> None:
    this = generate(recipe.facts, recipe.seed)
    tok = small.tokenizer(kind in small.FRAMED)
    torch.manual_seed(recipe.seed)
    model = small.BUILD[kind](recipe.shape, tok).train()
    optimizers = _optimizers(model, recipe)
    peak = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    lengths = [len(_batches(this, kind, recipe, epoch)) for epoch in (0, recipe.warm_epochs)]
    steps = recipe.warm_epochs * lengths[0] + (recipe.epochs - recipe.warm_epochs) * lengths[1]
    run = asdict(recipe)
    state_path = folder / "state.safetensors"
    progress = {"run": run, "epoch": 0, "batch": 0, "step": 0, "seconds": 0.0, "epochs": []}
    if state_path.exists():
        progress = load_state(state_path, model, optimizers)
        if progress["run"] != json.loads(json.dumps(run)):
            raise UserError(f"{folder} holds a run with other settings; choose another --out or give the same flags")
    bar = tqdm(total=steps, initial=progress["step"], unit="step", desc=kind)
    saved = last = time.monotonic()
    begun = progress["step"]
    while progress["epoch"] < recipe.epochs:
        for lessons in _batches(this, kind, recipe, progress["epoch"])[progress["batch"]:]:
            for optimizer, lr in zip(optimizers, peak):
                optimizer.param_groups[0]["lr"] = lr * rate(progress["step"], steps, recipe.decay, max(1, steps // 20))
            with torch.autocast("cpu", torch.bfloat16):
                loss = _loss(kind, model, tok, lessons, progress["step"])
            descend(model, optimizers, loss)
            progress["batch"] += 1
            progress["step"] += 1
            now = time.monotonic()
            progress["seconds"] += now - last
            last = now
            bar.update()
            bar.set_postfix(epoch=progress["epoch"], loss=f"{loss.item():.3f}", refresh=False)
            if now - saved > save_seconds or progress["step"] - begun == stop_after:
                save_state(state_path, model, optimizers, progress)
                saved = now
                if stop_after is not None and progress["step"] - begun >= stop_after:
                    return
        share = measure(kind, model.eval(), tok, this, every=max(1, len(this.facts) // 250))
        model.train()
        progress["epochs"].append({"epoch": progress["epoch"], "step": progress["step"], "loss": loss.item(),
                                   "seconds": round(progress["seconds"], 1), "right": share})
        tqdm.write(json.dumps(progress["epochs"][-1]))
        progress.update(epoch=progress["epoch"] + 1, batch=0)
    bar.close()
    right = measure(kind, model.eval(), tok, this)
    writing = folder / "writing"
    shutil.rmtree(writing, ignore_errors=True)
    small.save(writing, model, tok, {"kind": kind, "recipe": run, "right": right, "epochs": progress["epochs"]})
    files = sorted(writing.iterdir(), key=lambda file: file.name == "training_log.json")  # the log says that all is there
    for file in files:
        os.replace(file, folder / file.name)
    writing.rmdir()
    state_path.unlink(missing_ok=True)
    print(json.dumps({"kind": kind, "right": right, "seconds": round(progress["seconds"], 1)}))


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(RECIPES))
    parser.add_argument("--out", type=Path, help="folder of the run and of the model (default: its place in the data folder)")
    parser.add_argument("--facts", type=int, help="size of the world (default: the usual one)")
    for name in ("layers", "width", "ff", "heads", "epochs", "warm_epochs", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("muon_lr", "adam_lr", "weight_decay", "warm_share", "decay"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stop_after", type=int, help="stop after this many steps (go on with the same command)")
    return parser.parse_args(argv)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The kind's recipe with what was given."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    base = RECIPES[args.kind]
    shape = replace(base.shape, **{name: given[name] for name in ("layers", "width", "ff", "heads") if name in given})
    names = set(Recipe.__dataclass_fields__) - {"shape"}
    return replace(base, shape=shape, **{name: value for name, value in given.items() if name in names})


def _check(recipe: Recipe) -> None:
    """Raises UserError for what makes no model or no run."""
    for name, value in {**asdict(recipe.shape), "epochs": recipe.epochs, "batch": recipe.batch}.items():
        if value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    for name in ("muon_lr", "adam_lr", "weight_decay"):
        if not 0 <= getattr(recipe, name) < math.inf:
            raise UserError(f"--{name} must be a finite number, not below 0, not {getattr(recipe, name)}")
    if recipe.facts is not None and recipe.facts < 100:
        raise UserError(f"--facts must be at least 100, so that every relation has several objects, not {recipe.facts}")
    if recipe.shape.width % recipe.shape.heads:
        raise UserError(f"--width {recipe.shape.width} can't be divided by --heads {recipe.shape.heads}")
    if not 0 <= recipe.warm_epochs < recipe.epochs or not 0 < recipe.warm_share <= 1 or not 0 < recipe.decay <= 1:
        raise UserError("--warm_epochs must be fewer than --epochs, --warm_share and --decay shares: above 0, at most 1")


def main(argv=None) -> None:
    args = parse_args(argv)
    if args.threads < 1:
        raise UserError(f"--threads must be at least 1, not {args.threads}")
    torch.set_num_threads(args.threads)
    recipe = recipe_of(args)
    train(args.kind, args.out or data_folder() / "world-models" / args.kind, recipe, stop_after=args.stop_after)


if __name__ == "__main__":
    run_program(main)
