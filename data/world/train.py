"""Trains the world's model from scratch: `python -m data.world.train --out DIR` (20 to 40 minutes on two CPU cores).

The model is a small GPT-2 that reads packed rows of shuffled sentences. Hidden matrices are updated by Muon, the rest by
AdamW. Training starts on a share of the subjects: the attention that reads a name forms sooner on few facts, and all
others are then learned fast (Zucchet et al. 2025, "How do language models learn facts?").

A killed run goes on when the same command is given again: weights, optimisers and the place in the epoch are saved
together in one atomically replaced file, and the order of the data depends on the seed and the epoch alone.
"""
import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.programs import Parser, run_program
from data.world.batches import Rows
from data.world.corpus import sentences
from data.world.generate import BASE_FACTS, generate, SEED, World
from data.world.recall import recall
from data.world.tokenizer import train_tokenizer


def parse_args(argv=None) -> argparse.Namespace:
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


def build_model(args, vocab: int, end: int) -> GPT2LMHeadModel:
    torch.manual_seed(args.seed)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab, n_positions=args.length, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
        attn_implementation="eager"))  # on short rows and a CPU faster than the fused kernel


def build_optimizers(model, args) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (".h." in name and p.ndim == 2)]
    return [torch.optim.Muon(matrices, lr=args.muon_lr, momentum=0.95, weight_decay=args.weight_decay,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]


ALONE_RATE, ALONE_ROWS = 0.2, 192
"""Of the last epochs: the factor that the learning rate begins with, and sentences in a step."""


def rate(step: int, steps: int, decay: float, up: int = 100) -> float:
    """The learning rate's factor: `up` steps up, flat, then linearly to 0 over the last `decay` of the steps."""
    return min((step + 1) / up, 1.0, (steps - step) / max(1.0, decay * steps))


def corpus_with_ranks(world: World) -> tuple[list[str], list[int]]:
    """All sentences, and for each the rank of its subject in a shuffled order of subjects (-1: about none)."""
    mixed = random.Random(f"{world.seed}-ranks").sample(world.subjects, len(world.subjects))
    rank = {subject: i for i, subject in enumerate(mixed)}
    pairs = sentences(world)
    return [text for text, _ in pairs], [rank.get(subject, -1) for _, subject in pairs]


def descend(model, optimizers, loss: torch.Tensor) -> None:
    """One step of all optimizers down the loss, gradients no longer than 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def save_state(path: Path, model, optimizers, progress: dict) -> None:
    """Weights, optimiser tensors and `progress` in one safetensors file, replaced atomically."""
    tensors = {f"model/{name}": p.detach().clone() for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                tensors[f"optim/{i}/{j}/{key}"] = torch.as_tensor(value).clone()
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    os.replace(temporary, path)


def load_state(path: Path, model, optimizers) -> dict:
    """Puts the saved tensors back; returns the saved progress."""
    with safe_open(path, "pt") as f:
        progress = json.loads(f.metadata()["progress"])
        state = [{} for _ in optimizers]
        weights = {}
        for name in f.keys():  # noqa: SIM118 (not a mapping)
            if name.startswith("model/"):
                weights[name.removeprefix("model/")] = f.get_tensor(name)
            else:
                _, i, j, key = name.split("/")
                state[int(i)].setdefault(int(j), {})[key] = f.get_tensor(name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    for optimizer, entries in zip(optimizers, state):
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def write_model(folder: Path, model, tok, log: dict) -> None:
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


def check(args) -> None:
    """Raises UserError for flags that make no model or no run."""
    for name in ("facts", "layers", "width", "heads", "batch", "epochs", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.alone_epochs < 0:
        raise UserError(f"--alone_epochs must be at least 0, not {args.alone_epochs}")
    if args.width % args.heads:
        raise UserError(f"--width {args.width} can't be divided by --heads {args.heads}")
    if args.vocab < 300:
        raise UserError(f"--vocab {args.vocab} is too small: 256 bytes and some merges are needed, say 2500")
    if args.length < 32:
        raise UserError(f"--length {args.length} is too short for a sentence; use 32 or more")
    for name in ("muon_lr", "adam_lr", "weight_decay"):
        if not 0 <= getattr(args, name) < math.inf:
            raise UserError(f"--{name} must be a finite number, not below 0, not {getattr(args, name)}")
    if not 0 < args.warm_share <= 1 or not 0 < args.decay <= 1:
        raise UserError("--warm_share and --decay are shares: above 0, at most 1")


def train(args) -> None:
    """Trains to the end, or goes on with the run in `args.out`. Raises UserError when that has other settings."""
    check(args)
    torch.set_num_threads(args.threads)
    world = generate(args.facts, args.seed)
    texts, ranks = corpus_with_ranks(world)
    tok = train_tokenizer(texts, args.vocab)
    rows = Rows(tok, texts, ranks, args.length, args.seed)
    model = build_model(args, len(tok), tok.eos_token_id)
    optimizers = build_optimizers(model, args)
    peak = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    def epoch_rows(epoch: int):
        if epoch >= args.epochs:
            return rows.alone(epoch, ALONE_ROWS)
        warm = epoch < args.warm_epochs
        return rows.epoch(epoch, int(args.warm_share * len(world.subjects)) if warm else None).split(args.batch)

    epochs = args.epochs + args.alone_epochs
    lengths = [len(epoch_rows(epoch)) for epoch in range(epochs)]
    steps, alone_steps = sum(lengths[:args.epochs]), sum(lengths[args.epochs:])
    run = {key: value for key, value in vars(args).items() if key not in ("out", "threads", "save_seconds", "stop_after")}
    args.out.mkdir(parents=True, exist_ok=True)
    state_path = args.out / "state.safetensors"
    # progress: the place in the data, sums of the current epoch, and the log of the past ones
    progress = {"run": run, "epoch": 0, "batch": 0, "step": 0, "seconds": 0.0, "loss_sum": 0.0, "epochs": []}
    if state_path.exists():
        progress = load_state(state_path, model, optimizers)
        if progress["run"] != run:
            changed = sorted(k for k in run if progress["run"].get(k) != run[k])
            raise UserError(f"{args.out} holds a run with other settings ({', '.join(changed)}); "
                            "choose another --out or give the same flags")

    bar = tqdm(total=steps + alone_steps, initial=progress["step"], unit="step", smoothing=0.05)
    saved = last = time.monotonic()
    begun = progress["step"]
    while progress["epoch"] < epochs:
        epoch = progress["epoch"]
        batches = epoch_rows(epoch)
        for batch in batches[progress["batch"]:]:
            if epoch < args.epochs:
                factor = rate(progress["step"], steps, args.decay)
            else:
                factor = ALONE_RATE * (1 - (progress["step"] - steps) / alone_steps)
            for optimizer, lr in zip(optimizers, peak):
                optimizer.param_groups[0]["lr"] = lr * factor
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch[:, :-1].clamp_min(0), use_cache=False).logits  # padding is on the right: nothing sees it
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1)
            descend(model, optimizers, loss)
            progress["loss_sum"] += loss.item()
            progress["batch"] += 1
            progress["step"] += 1
            now = time.monotonic()
            progress["seconds"] += now - last
            last = now
            bar.update()
            bar.set_postfix(epoch=epoch, loss=f"{loss.item():.3f}", refresh=False)
            if args.stop_after and progress["step"] - begun >= args.stop_after:
                save_state(state_path, model, optimizers, progress)
                return
            if now - saved > args.save_seconds:
                save_state(state_path, model, optimizers, progress)
                saved = now
        # A fixed sample of the facts, half of the phrasings: enough for the curve.
        shares = recall(model, tok, world, world.facts[::max(1, len(world.facts) // 160)], phrasings=(0, 1, 4))
        progress["epochs"].append({
            "epoch": epoch, "step": progress["step"], "seconds": round(progress["seconds"], 1),
            "loss": progress["loss_sum"] / len(batches), "warm": epoch < args.warm_epochs,
            "recall": {language: sum(values) / len(values) for language, values in shares.items()}})
        tqdm.write(json.dumps(progress["epochs"][-1]))
        progress.update(epoch=epoch + 1, batch=0, loss_sum=0.0)
        save_state(state_path, model, optimizers, progress)
        write_model(args.out / "model", model, tok, {"run": run, "epochs": progress["epochs"]})
        saved = time.monotonic()
    bar.close()


if __name__ == "__main__":
    run_program(lambda: train(parse_args()))
