"""What each part of the toolkit gives for one decoder, held against a plain loop: texts one by one, unpadded, without cache."""

from __future__ import annotations

import json
import os
import random
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

import editors
from common.errors import UserError
from data.records import Record, Target
from editors.closed_form.aim import value_site
from editors.core.batching import check_continues
from editors.core.covariance import MomentSpec, collect
from editors.core.decoder import Decoder
from editors.core.keys import compute_hidden, compute_keys
from editors.core.modules import by_row, first
from editors.core.prompts import encode_target, fill, locate, parse_requests, prompt_ids
from editors.core.values import optimise
from editors.learned import checkpoint
from editors.learned.episode import Collator, Episode
from editors.learned.factors import gradient_factors
from editors.learned.inner_params import default_inner_params
from editors.learned.mend import MEND
from editors.learned.trainer import TrainConfig, Trainer
from experiments.metrics.counterfact import counterfact_metrics

LAYER = 2
CONTEXTS = ["{}", "The city of Lutmere. {}"]
FACTS = [
    ("{} works as a", "Tamsin Brackholt", "flute", "clockmaker"),
    ("The native language of {} is", "Orla Venn", "Nyvian and", "Lutmeran"),
    ("On market days {} lives in the city of", "Zoë", "Castavel", "Lutmere"),
]
TOLERANCE = 1e-4
"""Largest relative difference from the plain loop."""
VALUES = dict(fact_token="subject_last", v_num_grad_steps=20, v_lr=0.05, v_weight_decay=1e-3, clamp_norm_factor=0.75,
              kl_factor=1e-3, mom2_n_samples=10**6)


@dataclass(frozen=True)
class Cell:
    """What came of one check."""

    kind: Literal["right", "wrong", "line", "traceback"]
    text: str = ""
    """A number, the line of a UserError, or what was raised where."""
    number: float | None = None
    remark: str = ""
    """What is to be said of a right one."""


@dataclass(frozen=True)
class Text:
    """A prompt and its target, as learned editors take them."""

    input: str
    target: str
    label: None = None
    scored: None = None


class Subject:
    """A model and what the checks need of it."""

    def __init__(self, model: nn.Module, tok, folder: Path):
        self.model, self.tok, self.folder = model, tok, folder
        self.requests = [{"case_id": i, "prompt": prompt, "subject": subject, "target_new": {"str": new},
                          "target_true": {"str": true}} for i, (prompt, subject, new, true) in enumerate(FACTS)]
        self.corpus = folder / "corpus.jsonl"
        words = " ".join(fill(prompt, subject) + f" {new} {true}" for prompt, subject, new, true in FACTS).split()
        draw = random.Random(0)
        # Letters of many scripts, so that the keys of a first layer, which may depend on one token alone, span their space.
        words += ["".join(map(chr, draw.choices(range(0x21, 0x900), k=4))) for _ in range(200)]
        self.texts = [" ".join(draw.choices(words, k=draw.randint(2, 8))) for _ in range(80)]
        self.corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts))

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder.of(self.model, self.tok)

    @cached_property
    def layers(self) -> list[int]:
        """Of the first blocks, those whose down-projections can be edited."""
        return [layer for layer in range(LAYER + 1) if self.decoder.sites.down_projs[layer]]

    @property
    def layer(self) -> int:
        """The last of them. Raises UserError where there is none."""
        if not self.layers:
            self.decoder.weight(LAYER)
        return self.layers[-1]

    @cached_property
    def parsed(self):
        return parse_requests(self.requests, self.tok)

    def values(self, **more) -> dict[str, Any]:
        return VALUES | {"mom2_dataset": str(self.corpus)} | more

    def editor(self, name: str, **hparams):
        return editors.load(name, hparams)

    def edit(self, editor, requests: Sequence | None = None, contexts: Sequence[str] = CONTEXTS):
        return editor.edit(self.model, self.tok, self.requests if requests is None else requests,
                           context_templates=list(contexts), progress=False)

    def blocks(self) -> str:
        """Template of the blocks: the longest list of modules that run on text."""
        lists = {f"{name}.{{}}": part for name, part in self.model.named_modules() if isinstance(part, nn.ModuleList)}
        ran = set()
        hooks = [part[0].register_forward_hook(lambda *_, name=name: ran.add(name)) for name, part in lists.items()]
        self.plain([3, 7, 5])
        for hook in hooks:
            hook.remove()
        return max(ran, key=lambda name: len(lists[name]))

    # The plain loop

    def plain(self, ids: Sequence[int]) -> Tensor:
        """Logits of one row."""
        row = torch.tensor([list(ids)])
        with torch.no_grad():
            return self.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].float()

    def nll(self, prompt: Sequence[int], target: Sequence[int]) -> tuple[float, list[int]]:
        """(mean -log p of the target's tokens behind the prompt, the most probable tokens there)"""
        logits = self.plain([*prompt, *target[:-1]])[len(prompt) - 1:].log_softmax(-1)
        return -logits.gather(1, torch.tensor(target)[:, None]).mean().item(), logits.argmax(-1).tolist()

    def prompt(self, request) -> list[int]:
        return list(prompt_ids(self.tok, fill(request.prompt, request.subject)))

    @contextmanager
    def hook(self, module: nn.Module, hook: Callable | None) -> Iterator[None]:
        """Inside, the module has the forward hook."""
        handle = hook and module.register_forward_hook(hook)
        try:
            yield
        finally:
            if handle:
                handle.remove()

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[dict[str, Tensor]]:
        """What enters and leaves a module in a plain pass, [tokens, width]."""
        seen: dict[str, Tensor] = {}

        def note(module, args, kwargs, output):
            # Copies: Falcon adds to what its MLP returns in place.
            seen["in"] = by_row(args[0] if args else next(iter(kwargs.values())), 1)[0].detach().clone()
            seen["out"] = by_row(first(output), 1)[0].detach().clone()

        hook = module.register_forward_hook(note, with_kwargs=True)
        try:
            yield seen
        finally:
            hook.remove()


def far(ours: Tensor | float, plain: Tensor | float) -> float:
    """|ours - plain| / |plain|"""
    ours, plain = torch.as_tensor(ours).double().flatten(), torch.as_tensor(plain).double().flatten()
    return ((ours - plain).norm() / plain.norm().clamp_min(1e-30)).item()


def close(*distances: float) -> Cell:
    worst = max(distances, key=lambda x: x if x == x else float("inf"))
    return Cell("right" if worst < TOLERANCE else "wrong", f"{worst:.1e}", worst)


def sites(s: Subject) -> Cell:
    s.decoder.weight(s.layer)
    try:
        s.decoder.weight(LAYER)
    except UserError as error:
        return Cell("right", s.decoder.sites.down_proj, remark=str(error))
    return Cell("right", s.decoder.sites.down_proj)


def keys(s: Subject) -> Cell:
    """Keys, and states of a block, which are read by the same function."""
    layers = s.layers[:1] + s.layers[1:][-1:]
    ours = compute_keys(s.decoder, s.parsed, layers, [CONTEXTS[:1], CONTEXTS[1:]])
    hidden = compute_hidden(s.decoder, s.parsed, s.layer)
    distances = []
    for i, request in enumerate(s.parsed):
        rows = [locate(s.tok, fill(context, request.prompt), request.subject, "subject_last") for context in CONTEXTS]
        for layer in layers:
            plain = []
            with s.watching(s.decoder.down_proj(layer)) as seen:
                for row in rows:
                    s.plain(row.ids)
                    plain.append(seen["in"][row.index])
            distances.append(far(ours[layer][i], sum(plain) / len(plain)))
        with s.watching(s.decoder.block(s.layer)) as seen:
            s.plain(rows[0].ids)
        distances.append(far(hidden[i], seen["out"][rows[0].index]))
    return close(*distances)


def values(s: Subject) -> Cell:
    """The loss along the search of target states, at a block (MEMIT) and at a down-projection (ROME)."""
    check_continues(s.model, "an edit")  # as editors do
    settings = s.editor("MEMIT", layers=[s.layer], mom2_update_weight=1.0, **s.values(v_num_grad_steps=3)).hparams
    distances = []
    for site in ("block", "down_proj"):
        steps: list = []
        optimise(s.decoder, s.parsed, s.layer, settings, CONTEXTS, site, progress=False,
                 watch=lambda step, numbers, delta, terms: steps.append((list(numbers), delta, terms["nll"])))
        for numbers, deltas, losses in steps[::2]:
            plain = [_plain_loss(s, s.parsed[number], site, delta) for number, delta in zip(numbers, deltas)]
            distances.append(far(losses, torch.tensor(plain)))
    return close(*distances)


def _plain_loss(s: Subject, request, site: str, delta: Tensor) -> float:
    target, losses = encode_target(s.tok, request.target_new), []
    for context in CONTEXTS:
        row = locate(s.tok, fill(context, request.prompt), request.subject, "subject_last")
        with s.hook(s.decoder.module(site, s.layer), _changing(row.index, lambda state: state + delta)):
            losses.append(s.nll(row.ids, target)[0])
    return sum(losses) / len(losses)


def _changing(index: int, change: Callable[[Tensor], Tensor]) -> Callable:
    """A hook that changes what its module puts out at a token."""

    def hook(module, args, output):
        changed = by_row(first(output), 1).clone()
        changed[0, index] = change(changed[0, index])
        changed = changed.reshape(first(output).shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def statistics(s: Subject) -> Cell:
    spec = MomentSpec(str(s.corpus), "all")
    moment = collect(s.decoder, [s.layer], spec, stats_dir=s.folder / "stats", progress=False)[s.layer]
    total, count = 0, 0
    with s.watching(s.decoder.down_proj(s.layer)) as seen:
        for text in s.texts:
            s.plain(s.tok(text).input_ids)
            rows = seen["in"].double()
            total, count = total + rows.T @ rows, count + len(rows)
    return close(far(moment.matrix, total / count), abs(moment.count - count))


def metrics(s: Subject) -> Cell:
    """CounterFact's: likelihoods, arg max, and greedy continuations, all prompts in one left-padded batch."""
    records = [
        Record(i, subject, prompt, Target(new), Target(true), (f"Zoë. {fill(prompt, subject)}",), ("The city of",))
        for i, (prompt, subject, new, true) in enumerate(FACTS)
    ]
    distances = []
    for record, ours in zip(records, counterfact_metrics(s.model, s.tok, records)):
        prompts = {"rewrite": [fill(record.prompt, record.subject)], "paraphrase": record.paraphrase_prompts,
                   "neighborhood": record.neighborhood_prompts}
        for group, texts in prompts.items():
            for i, text in enumerate(texts):
                ids = list(prompt_ids(s.tok, text))
                for name in ("target_new", "target_true"):
                    target = encode_target(s.tok, " " + getattr(record, name).str)
                    plain, best = s.nll(ids, target)
                    distances.append(far(ours[f"{group}_prompts_probs"][i][name], plain))
                    if name == ("target_true" if group == "neighborhood" else "target_new"):
                        distances.append(float(ours[f"{group}_prompts_correct"][i] != (best == target)))
                        distances.append(float(not _greedy(s, ids, len(target)).startswith(
                            ours[f"{group}_prompts_generated"][i].rstrip("�"))))
    return close(*distances)


def _greedy(s: Subject, prompt: list[int], length: int) -> str:
    ids = list(prompt)
    for _ in range(length + 4):
        ids.append(s.plain(ids)[-1].argmax().item())
    return s.tok.decode(ids[len(prompt):], skip_special_tokens=True)


def share_left(blocks: int) -> Callable[[Subject], Cell]:
    """Of the distance to the target state of one fact, after an edit of so many blocks by MEMIT with lambda 1e-4."""
    most = 0.1 if blocks == 1 else 0.15

    def check(s: Subject) -> Cell:
        layers = s.layers[-blocks:]
        editor = s.editor("MEMIT", layers=layers, mom2_update_weight=1e-4, **s.values())
        request, layer = s.parsed[0], layers[-1]
        row = locate(s.tok, request.prompt, request.subject, "subject_last")

        def state(outputs: Mapping[int, Tensor] = MappingProxyType({})) -> Tensor:
            """The last block's, if down-projections put these out at the looked-up token."""
            with ExitStack() as stack:
                seen = stack.enter_context(s.watching(s.decoder.block(layer)))
                for number, output in outputs.items():
                    stack.enter_context(s.hook(s.decoder.down_proj(number), _changing(row.index, lambda _, new=output: new)))
                s.plain(row.ids)
            return seen["out"][row.index]

        edit = s.edit(editor, s.requests[:1], CONTEXTS[:1])
        site = value_site(s.decoder, [request], layers, "subject_last")
        values = optimise(s.decoder, [request], layer, editor.hparams, CONTEXTS[:1], site, progress=False)
        before, target = state(), values.target[0]
        if site != "block":
            target = state(dict(zip(layers, target.unflatten(0, (len(layers), -1)))))
        with edit.applied(s.model):
            after = state()
        share = ((target - after).norm() / (target - before).norm()).item()
        return Cell("right" if share <= most else "wrong", f"{share:.2g}", share)

    return check


def rome(s: Subject) -> Cell:
    """|W' k - v| / |v|"""
    editor = s.editor("ROME", layers=[s.layer], mom2_adjustment=True, context_template_length_params=[[5, 2]], **s.values())
    edit, request = s.edit(editor, s.requests[:1]), s.parsed[0]
    target = optimise(s.decoder, s.parsed[:1], s.layer, editor.hparams, CONTEXTS, "down_proj", progress=False).target[0]
    row = locate(s.tok, request.prompt, request.subject, "subject_last")
    with edit.applied(s.model), s.watching(s.decoder.down_proj(s.layer)) as seen:
        s.plain(row.ids)
    return close(far(seen["out"][row.index], target))


def lowers(name: str, **hparams) -> Callable[[Subject], Cell]:
    """Whether a fact's target is likelier after the edit."""

    def check(s: Subject) -> Cell:
        s.decoder.weight(s.layer)
        return _lowered(s, s.editor(name, layers=s.layers[-2:], mom2_update_weight=0.1, **s.values(**hparams)))

    return check


def _lowered(s: Subject, editor) -> Cell:
    row = s.prompt(s.parsed[0]), encode_target(s.tok, s.parsed[0].target_new)
    before = s.nll(*row)[0]
    with s.edit(editor, s.requests[:1], CONTEXTS[:1]).applied(s.model):
        after = s.nll(*row)[0]
    return Cell("right" if after < before else "wrong", f"{before:.2f} to {after:.2f}", after / before)


memit = lowers("MEMIT")
memat = lowers("MEMAT", correction_lr=0.05, heads=[[1, 0], [3, 2], [3, 1]])


def ft(s: Subject) -> Cell:
    """On the down-projection, or, where there is none, on the whole block. Its first loss is compared with the plain one."""
    template, layer = None, LAYER
    try:
        layer = s.layer
    except UserError:
        template = s.blocks()
    editor = s.editor("FT", layers=[layer], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False,
                      **({"rewrite_module_tmp": template} if template else {}))
    plain = []
    for request in s.parsed:
        log_p = s.plain(s.prompt(request))[-1].log_softmax(-1)
        plain.append(-log_p[encode_target(s.tok, request.target_new)].mean().item())
    losses = s.edit(editor).info["loss"]
    distance = far(losses[0], sum(plain) / len(plain))
    return close(distance) if losses[-1] < losses[0] else Cell("wrong", f"loss {losses[0]:.3f} to {losses[-1]:.3f}")


def mend(s: Subject) -> Cell:
    """The gradient's factors, a short training, and the trained editor's edit."""
    flags = {p: p.requires_grad for p in s.model.parameters()}
    try:
        inner = default_inner_params(s.model, 2)
        alg = MEND.build(s.model.requires_grad_(False), inner, {"rank": 8, "descent": True, "edit_lr": 1e-3})
        collate = Collator(s.tok, alg.kind)
        texts = [Text(request.text, request.target_new) for request in s.parsed]
        factors = gradient_factors(alg, collate.batch(texts))
        products = {name: f.u.T @ f.delta if alg.in_first[name] else f.delta.T @ f.u for name, f in factors.items()}
        plain = _plain_gradients(s, inner)
        config = TrainConfig(lr=1e-4, lr_lr=1e-4, accumulate_bs=2, parallel=2, max_iters=4, val_interval=4, log_interval=4,
                             cedit=1.0, train_base=False)
        Trainer(alg, config, Texts(texts, collate), Texts(texts, collate), s.folder / "mend", progress=False).run()
        path = s.folder / "mend.safetensors"
        checkpoint.save(path, alg, {})
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    lowered = _lowered(s, s.editor("MEND", checkpoint=str(path)))
    return close(*(far(products[name], plain[name]) for name in inner)) if lowered.kind == "right" else lowered


def _plain_gradients(s: Subject, names: Sequence[str]) -> dict[str, Tensor]:
    """Of the mean loss of the targets' tokens."""
    weights = {name: s.model.get_parameter(name).detach().clone().requires_grad_() for name in names}
    log_p = []
    for request in s.parsed:
        prompt, target = s.prompt(request), encode_target(s.tok, request.target_new)
        row = torch.tensor([[*prompt, *target[:-1]]])
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "use_cache": False}
        logits = torch.func.functional_call(s.model, weights, (), inputs).logits[0, len(prompt) - 1:]
        log_p.append(logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]))
    gradients = torch.autograd.grad(-torch.cat(log_p).mean(), list(weights.values()), materialize_grads=True)
    return dict(zip(names, gradients))


@dataclass(frozen=True)
class Texts:
    """Episodes: each text as its own edit, the next one as what is to stay."""

    texts: Sequence[Text]
    collate: Collator

    def __len__(self) -> int:
        return len(self.texts)

    def episode(self, number: int) -> Episode:
        one, other = (self.texts[(number + i) % len(self.texts)] for i in (0, 1))
        batch = self.collate.batch([one])
        condition = self.collate.texts([one.input + one.target])
        return Episode(batch, batch, self.collate.batch([other]), condition, torch.tensor([[0, 0]]))


CHECKS: dict[str, Callable[[Subject], Cell]] = {
    "sites": sites, "keys": keys, "values": values, "statistics": statistics, "metrics": metrics,
    "share_1": share_left(1), "share_3": share_left(3), "MEMIT": memit, "ROME": rome, "FT": ft, "MEMAT": memat,
    "MEND": mend,
}
NEED_SITES = {"keys", "values", "statistics", "share_1", "share_3", "ROME", "MEMAT"}
"""Checks that are not tried where the sites are not found; MEMIT is, for its line."""


def run_checks(model: nn.Module, tok) -> dict[str, Cell]:
    """{check: what came of it}; the model stays as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KE_STATS_DIR"] = f"{folder}/statistics"
        subject = Subject(model, tok, Path(folder))
        for name, check in CHECKS.items():
            torch.manual_seed(0)
            if name in NEED_SITES and cells["sites"].kind != "right":
                cells[name] = cells["sites"]
                continue
            try:
                cells[name] = check(subject)
            except UserError as error:
                cells[name] = Cell("line", str(error))
            except Exception as error:
                frame = next((f for f in reversed(traceback.extract_tb(error.__traceback__))
                              if "/editors/" in f.filename or "/experiments/" in f.filename), None)
                where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" if frame else "?"
                cells[name] = Cell("traceback", f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:160]}")
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    if changed:
        cells["restored"] = Cell("wrong", f"{changed[:3]} changed")
    return cells
