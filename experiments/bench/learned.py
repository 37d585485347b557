"""`python -m experiments.bench learned`: MEND edits from hooked factors, against materialising the full gradient.

Both make N edits, each on the unedited model, and read its answer. The plain way is the published one: every parameter of the
model gets its gradient in full, which is then thrown away but for what hooks kept, and the update is multiplied out into a
copy of the weight. Ours asks for the gradients of the modules' outputs only and keeps the update as factors; side by side,
several edits go through the model together. Results are compared.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from editors.learned.editable import forward
from editors.learned.episode import Batch, joined_batches
from editors.learned.factors import Factors, linear_of
from editors.learned.inner_params import default_inner_params
from editors.learned.losses import IGNORED
from editors.learned.mend import MEND
from experiments.bench.inputs import SMALL, TINY, random_gpt2
from experiments.bench.options import options, parse
from experiments.bench.race import race, require_equal

TOLERANCE = 1e-3


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints edits per second of each way and the ratios; exits with 1 if the edited models' answers differ."""
    args = parse(options(
        "learned", __doc__, tiny=True, edits=(20, ""), tokens=(20, "of an edit, the last two its target"),
        rank=(1920, "of the editor networks"), side_by_side=(10, "edits together"),
        repeats=(2, "the fastest of so many counts")), argv)
    shape = TINY if args.tiny else SMALL
    model = random_gpt2(shape, args.seed)
    alg = MEND(model, default_inner_params(model), {"rank": args.rank, "edit_lr": 1e-3})
    generator = torch.Generator().manual_seed(args.seed)
    edits = [_edit(args.tokens, shape["vocab_size"], generator) for _ in range(args.edits)]
    alg.train().edit(joined_batches(edits[:2]), segments=2)  # statistics
    alg.eval()
    ways: dict[str, Callable[[], Iterator[Tensor]]] = {
        "full gradients": lambda: _plain(alg, edits), "factors": lambda: _one_by_one(alg, edits),
        f"factors, {args.side_by_side} side by side": lambda: _together(alg, edits, args.side_by_side),
    }
    with torch.no_grad():
        run = race({way: lambda edit=edit: torch.stack(list(edit())) for way, edit in ways.items()}, args.repeats)
    rates = {way: args.edits / run.best(way) for way in ways}
    for way, rate in rates.items():
        print(f"{way:28s} {rate:8.2f} edits/s")
    first, *others = run.results.values()
    difference = max(float((other - first).norm() / first.norm()) for other in others)
    plain, single, together = rates.values()
    print(f"ratio: factors {single / plain:.1f}, side by side {together / plain:.1f}; "
          f"largest relative difference: {difference:.1e}")
    require_equal(difference, TOLERANCE, "answers")
    return {"factors": single / plain, "side_by_side": together / plain, "difference": difference}


def _edit(tokens: int, vocabulary: int, generator: torch.Generator) -> Batch:
    ids = torch.randint(vocabulary, (1, tokens), generator=generator)
    labels = ids.clone()
    labels[:, :-2] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _answers(logits: Tensor) -> Tensor:
    """The last position's log-probabilities of each edit."""
    return logits[:, -1].log_softmax(-1)


def _one_by_one(alg: MEND, edits: list[Batch]) -> Iterator[Tensor]:
    for batch in edits:
        edited, _ = alg.edit(batch, detach_history=True)
        yield _answers(edited(batch))[0]


def _together(alg: MEND, edits: list[Batch], size: int) -> Iterator[Tensor]:
    for i in range(0, len(edits), size):
        batch = joined_batches(edits[i:i + size])
        edited, _ = alg.edit(batch, detach_history=True, segments=len(edits[i:i + size]))
        yield from _answers(edited(batch))


def _plain(alg: MEND, edits: list[Batch]) -> Iterator[Tensor]:
    """Hooks, a full backward pass, and weights in full, as published."""
    model = alg.model.requires_grad_(True)
    hooked: dict[str, dict[str, Tensor]] = {name: {} for name in alg.inner}
    handles = []
    for name in alg.inner:
        module, _ = linear_of(model, name)
        handles.append(module.register_forward_hook(lambda _, x, y, to=hooked[name]: to.update(u=x[0].detach())))
        handles.append(module.register_full_backward_hook(lambda _, x, y, to=hooked[name]: to.update(delta=y[0].detach())))
    try:
        for batch in edits:
            with torch.enable_grad():
                alg.score(forward(model, {}, batch), batch).nll.backward()
            weights, factors = {}, {}
            for name in alg.inner:
                u, delta = (hooked[name][key].flatten(0, 1) for key in ("u", "delta"))
                factors[name] = Factors(u, delta, torch.zeros(len(u), dtype=torch.long)).kept()
            context = alg.context(None, factors, 1)
            for i, name in enumerate(alg.inner):
                u, delta, _ = alg.transformed(i, factors[name], context)
                weights[name] = model.get_parameter(name).detach() + (u.T @ delta if alg.in_first[name] else delta.T @ u)
            model.zero_grad(set_to_none=True)
            yield _answers(forward(model, weights, batch))[0]
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)
