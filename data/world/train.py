"""Trains the world's model from scratch: `python -m data.world.train --out DIR` (20 to 40 minutes on two CPU cores).

The model is a small GPT-2 that reads packed rows of shuffled sentences. Hidden matrices are updated by Muon, the rest by
AdamW. Training starts on a share of the subjects: the attention that reads a name forms sooner on few facts, and all
others are then learned fast (Zucchet et al. 2025, "How do language models learn facts?").

A killed run goes on when the same command is given again: weights, optimisers and the place in the epoch are saved
together in one atomically replaced file, and the order of the data depends on the seed and the epoch alone.
"""
import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.programs import Parser, run_program
from data.world.batches import PackedCorpus
from data.world.corpus import sentences
from data.world.generate import BASE_FACTS, generate, SEED, World
from data.world.recall import recall
from data.world.tokenizer import train_tokenizer
from data.world.training import check_flags, optimizers_of, rate, Training

ALONE_RATE, ALONE_ROWS = 0.2, 192
"""Of the last epochs: the factor that the learning rate begins with, and sentences in a step."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and, in the end, of the model")
    parser.add_argument("--seed", type=int, default=SEED, help="of the world, the weights and the order of the data")
    parser.add_argument("--facts", type=int, default=BASE_FACTS)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=4000)
    parser.add_argument("--length", type=int, default=128, help="tokens in a row, and positions of the model")
    parser.add_argument("--batch", type=int, default=24, help="rows in a step")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--alone_epochs", type=int, default=1,
                        help="after these, with every sentence alone in its row: a prompt has nothing before it either")
    parser.add_argument("--warm_epochs", type=int, default=10, help="first epochs, on a share of the subjects")
    parser.add_argument("--warm_share", type=float, default=0.2)
    parser.add_argument("--decay", type=float, default=0.4, help="last share of the steps, over which the rate falls to 0")
    parser.add_argument("--muon_lr", type=float, default=1e-3)
    parser.add_argument("--adam_lr", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=1.0,
                        help="of the matrices; when weak, hidden states grow large and edits carry over badly")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save_seconds", type=float, default=60)
    parser.add_argument("--stop_after", type=int, help="stop after this many steps (go on with the same command)")
    return parser.parse_args(argv)


def build_model(args: argparse.Namespace, vocab: int, end: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights. vocab: its number of tokens. end: the id of the end-of-text token."""
    torch.manual_seed(args.seed)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab, n_positions=args.length, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
        attn_implementation="eager"))  # on short rows and a CPU faster than the fused kernel


def corpus_with_ranks(world: World) -> tuple[list[str], list[int]]:
    """All sentences, and for each the rank of its subject in a shuffled order of subjects (-1: about none)."""
    shuffled = random.Random(f"{world.seed}-ranks").sample(world.subjects, len(world.subjects))
    rank = {subject: i for i, subject in enumerate(shuffled)}
    pairs = sentences(world)
    return [text for text, _ in pairs], [rank.get(subject, -1) for _, subject in pairs]


def write_model(folder: Path, model: GPT2LMHeadModel, tok, log: dict) -> None:
    """The checkpoint as transformers loads it, in float16, with the training log; each file is replaced atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "writing"
    config, dtype = model.config.to_dict(), torch.float16
    stored = GPT2LMHeadModel(GPT2Config.from_dict(config)).to(dtype)
    stored.load_state_dict({name: value.to(dtype) for name, value in model.state_dict().items()})
    stored.save_pretrained(temporary)
    tok.save_pretrained(temporary)
    (temporary / "training_log.json").write_text(json.dumps(log, indent=1))
    for file in temporary.iterdir():
        os.replace(file, folder / file.name)
    temporary.rmdir()


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that make no model or no run."""
    check_flags(vars(args), ("facts", "layers", "width", "heads", "batch", "epochs", "threads"))
    if args.alone_epochs < 0:
        raise UserError(f"--alone_epochs must be at least 0, not {args.alone_epochs}")
    if args.vocab < 300:
        raise UserError(f"--vocab {args.vocab} is too small: 256 bytes and some merges are needed, say 2500")
    if args.length < 32:
        raise UserError(f"--length {args.length} is too short for a sentence; use 32 or more")
    if not 0 < args.warm_share <= 1 or not 0 < args.decay <= 1:
        raise UserError("--warm_share and --decay are shares: above 0, at most 1")


def train(args: argparse.Namespace) -> None:
    """Trains to the end, or goes on with the run in `args.out`. Raises UserError when that has other settings."""
    check(args)
    torch.set_num_threads(args.threads)
    world = generate(args.facts, args.seed)
    texts, ranks = corpus_with_ranks(world)
    tok = train_tokenizer(texts, args.vocab)
    packed = PackedCorpus(tok, texts, ranks, args.length, args.seed)
    model = build_model(args, len(tok), tok.eos_token_id)
    # Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases.
    optimizers = optimizers_of(model, lambda name, parameter: ".h." in name and parameter.ndim == 2, args)

    def batches_of(epoch: int) -> Sequence[torch.Tensor]:
        if epoch >= args.epochs:
            return packed.alone(epoch, ALONE_ROWS)
        warm = epoch < args.warm_epochs
        return packed.epoch(epoch, int(args.warm_share * len(world.subjects)) if warm else None).split(args.batch)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1].clamp_min(0), use_cache=False).logits  # padding is on the right: nothing sees it
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=-1)

    epochs = args.epochs + args.alone_epochs
    lengths = [len(batches_of(epoch)) for epoch in range(epochs)]
    steps, alone_steps = sum(lengths[:args.epochs]), sum(lengths[args.epochs:])
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "threads", "save_seconds", "stop_after")}
    args.out.mkdir(parents=True, exist_ok=True)
    training = Training(args.out, settings, model, optimizers, steps + alone_steps, args.save_seconds, args.stop_after)
    progress = training.progress
    while progress["epoch"] < epochs:
        epoch = progress["epoch"]
        batches = batches_of(epoch)
        for rows in batches[progress["batch"]:]:
            if epoch < args.epochs:
                factor = rate(progress["step"], steps, args.decay)
            else:
                factor = ALONE_RATE * (1 - (progress["step"] - steps) / alone_steps)
            if training.step(lambda rows=rows: loss_of(rows), factor):
                return
        # A fixed sample of the facts, half of the phrasings: enough for the curve.
        shares = recall(model, tok, world, world.facts[::max(1, len(world.facts) // 160)], phrasings=(0, 1, 4))
        training.end_epoch(loss=progress["loss_sum"] / len(batches), warm=epoch < args.warm_epochs,
                           recall={language: sum(values) / len(values) for language, values in shares.items()})
        training.save()
        write_model(args.out / "model", model, tok, {"run": settings, "epochs": progress["epochs"]})
    training.bar.close()


if __name__ == "__main__":
    run_program(lambda: train(parse_args()))
