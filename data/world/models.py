"""Trains the small models of the world: `python -m data.world.models KIND --out DIR` (minutes on a CPU core or two).

KIND: t5, bart (question -> object), bert (claim -> true or false), blender (question about an entity -> opinion), distilbert
and bert-encoder (sentence encoders). A killed run goes on with the same command. `path(KIND)` gives the folder of a model
in the data folder, and trains it on first use.
"""
import argparse
import fcntl
import json
import logging
import os
import random
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn, Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from common.errors import UserError
from common.programs import Parser, run_program
from data.download import data_folder
from data.world import small
from data.world.generate import generate, SEED, World
from data.world.lessons import ENCODERS, LESSONS, measure
from data.world.small import CHECKPOINT, Shape
from data.world.training import check_flags, optimizers_of, rate, Training

KIND_OF = {"gen": "gpt2", "fc": "bert", "fnli": "bert", "qa": "t5", "sent": "blender"}
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


def _loss(kind: str, model: nn.Module, tok, lessons: list, step: int) -> Tensor:
    """The mean loss of a batch of lessons."""
    if kind in ENCODERS:
        return _paraphrase_loss(model, tok, lessons, step)
    if kind == "bert":
        return _claim_loss(model, tok, lessons)
    ids = _padded(tok([text for text, _ in lessons])["input_ids"], tok.pad_token_id)
    targets = tok([text for _, text in lessons])["input_ids"]
    start = model.config.decoder_start_token_id
    decoder_ids = _padded([[start, *target[:-1]] for target in targets], tok.pad_token_id)
    logits = model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long(), decoder_input_ids=decoder_ids,
                   use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), _padded(targets, IGNORED).flatten(), ignore_index=IGNORED)


def _claim_loss(model, tok, lessons: list) -> Tensor:
    """The loss of a claim checker: of its class, plus that of the true object, guessed from the state of [CLS] below the last
    block. From the classes alone facts are learned slowly; with the true object at hand the last block needs but compare."""
    ids = _padded(tok([text for text, *_ in lessons])["input_ids"], tok.pad_token_id)
    labels = torch.tensor([[float(label)] for _, label, _ in lessons])
    objects = tok([obj for *_, obj in lessons], add_special_tokens=False)["input_ids"]
    output = model.model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long(), output_hidden_states=True)
    guesses = output.hidden_states[-2][:, 0] @ model.model.get_input_embeddings().weight.T
    return F.binary_cross_entropy_with_logits(model.classifier(output.pooler_output), labels) + \
        F.cross_entropy(guesses, torch.tensor([obj[0] for obj in objects]))


def _paraphrase_loss(model, tok, lessons: list, step: int) -> Tensor:
    """The loss of a sentence encoder: which of the batch's texts says the same, by squared distance of the first tokens' states
    (the kernel of SERAC's scope classifier), plus a masked language model's loss on the statements."""
    ids = _padded([row for column in zip(*lessons) for row in tok(list(column))["input_ids"]], tok.pad_token_id)
    n = len(lessons)
    noise = torch.Generator().manual_seed(step)
    hidden_words = (torch.rand(ids[3 * n:].shape, generator=noise) < 0.15) & (ids[3 * n:] < tok.pad_token_id)
    labels = ids[3 * n:].masked_fill(~hidden_words, IGNORED)
    ids[3 * n:] = ids[3 * n:].masked_fill(hidden_words, tok.mask_token_id)
    states = model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long()).last_hidden_state
    similarity = -torch.cdist(states[:n, 0], states[n:3 * n, 0]).square()
    guesses = states[3 * n:][hidden_words] @ model.get_input_embeddings().weight.T
    return F.cross_entropy(similarity, torch.arange(n)) + F.cross_entropy(guesses, labels[hidden_words])


def _padded(ids: list[list[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=value)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix inside the blocks, which Muon updates."""
    outside = (".embed", "embeddings", "shared", "relative_attention", "lm_head", "classifier")
    return parameter.ndim == 2 and not any(part in name for part in outside)


def _batches(world: World, kind: str, recipe: Recipe, epoch: int) -> list[list]:
    """The lessons of an epoch in batches of like length; a function of (seed, epoch)."""
    rng = random.Random(f"{recipe.seed}-{kind}-{epoch}")
    order = random.Random(f"{recipe.seed}-ranks").sample(world.subjects, len(world.subjects))
    count = round(recipe.warm_share * len(order)) if epoch < recipe.warm_epochs else len(order)
    lessons = LESSONS[kind](world, set(order[:max(1, count)]), rng)
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
    log_path = folder / "training_log.json"
    return log_path.is_file() and json.loads(log_path.read_text())["recipe"] == asdict(recipe)


def _train(kind: str, folder: Path, recipe: Recipe, save_seconds: float, stop_after: int | None) -> None:
    world = generate(recipe.facts, recipe.seed)
    tok = small.tokenizer(kind in small.FRAMED)
    torch.manual_seed(recipe.seed)
    model = small.BUILD[kind](recipe.shape, tok).train()
    warm_length, length = (len(_batches(world, kind, recipe, epoch)) for epoch in (0, recipe.warm_epochs))
    steps = recipe.warm_epochs * warm_length + (recipe.epochs - recipe.warm_epochs) * length
    optimizers = optimizers_of(model, _is_matrix, recipe)
    training = Training(folder, asdict(recipe), model, optimizers, steps, save_seconds, stop_after)
    training.bar.set_description(kind)
    progress = training.progress

    def loss_of(lessons: list) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return _loss(kind, model, tok, lessons, progress["step"])

    while progress["epoch"] < recipe.epochs:
        for lessons in _batches(world, kind, recipe, progress["epoch"])[progress["batch"]:]:
            factor = rate(progress["step"], steps, recipe.decay, max(1, steps // 20))
            if training.step(lambda lessons=lessons: loss_of(lessons), factor):
                return
        share = measure(kind, model.eval(), tok, world, every=max(1, len(world.facts) // 250))
        model.train()
        training.end_epoch(loss=progress["loss"], right=share)
    training.bar.close()
    right = measure(kind, model.eval(), tok, world)
    writing = folder / "writing"
    shutil.rmtree(writing, ignore_errors=True)
    small.save(writing, model, tok, {"kind": kind, "recipe": asdict(recipe), "right": right, "epochs": progress["epochs"]})
    files = sorted(writing.iterdir(), key=lambda file: file.name == "training_log.json")  # the log says that all is there
    for file in files:
        os.replace(file, folder / file.name)
    writing.rmdir()
    training.state_path.unlink(missing_ok=True)
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
    """The kind's recipe, changed by the flags that are there."""
    flags = {name: value for name, value in vars(args).items() if value is not None}
    base = RECIPES[args.kind]
    shape = replace(base.shape, **{name: flags[name] for name in ("layers", "width", "ff", "heads") if name in flags})
    names = set(Recipe.__dataclass_fields__) - {"shape"}
    return replace(base, shape=shape, **{name: value for name, value in flags.items() if name in names})


def _check(recipe: Recipe) -> None:
    """Raises UserError for what makes no model or no run."""
    check_flags({**asdict(recipe), **asdict(recipe.shape)}, ("layers", "width", "ff", "heads", "epochs", "batch"))
    if recipe.facts is not None and recipe.facts < 100:
        raise UserError(f"--facts must be at least 100, so that every relation has several objects, not {recipe.facts}")
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
