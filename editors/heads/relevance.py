"""How well attention heads tell new facts from old ones, in the model as it is (with MEMIT's edit in it)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.errors import UserError
from editors.core.decoder import Decoder
from editors.core.prompts import prompt_ids, Request, target_ids
from editors.core.recall import recall
from . import probes
from .outputs import Head, head_outputs


@dataclass(frozen=True)
class Relevance:
    """How well each head tells the new facts from the old ones."""

    accuracy: Float[Tensor, "layers heads"]
    """Of its probe, on the validation facts."""
    voters: list[int]
    """Positions of the facts that took part."""
    training: list[int]
    validation: list[int]

    def best(self, number: int) -> list[Head]:
        """The `number` best heads, best first; of equals the lower layer and head first. UserError if there are not so many."""
        return probes.rank(self.accuracy, number)


def prompt_pair(request: Request) -> tuple[str, str]:
    """What stands before the new object, and before the old one."""
    return request.text, request.true_text


def sentence_rows(decoder: Decoder, requests: Sequence[Request], end: str = "target") -> list[list[int]]:
    """Token ids of the new and then the old fact of each request, each with the prompt that agrees with its object; with end
    "prompt" without the object.

    Raises UserError for a request without target_true, or with a sentence longer than the model; with "prompt", where no
    request has two different ones.
    """
    texts: list[str] = []
    rows: list[list[int]] = []
    for number, request in enumerate(requests):
        if not request.target_true:
            raise UserError(f"request {number} (case_id {request.case_id}) has no target_true: heads are chosen by what tells "
                            "the new fact from the old one; give it, or give the heads")
        pair = prompt_pair(request)
        texts += pair
        prompts = [list(prompt_ids(decoder.tok, text)) for text in pair]
        if end == "target":
            prompts[0] += request.target_ids(decoder.tok)
            prompts[1] += target_ids(decoder.tok, pair[1], request.target_true, request.joined)
        rows += prompts
    if end == "prompt" and texts[::2] == texts[1::2]:
        raise UserError("probe_token: the new and the old object of every request stand behind the same prompt, so that "
                        'nothing tells them apart there; take "target"')
    limit = decoder.positions
    for i, row in enumerate(rows):
        if limit and len(row) > limit:
            request = requests[i // 2]
            raise UserError(f"request {i // 2} (case_id {request.case_id}): the sentence {texts[i][:60]!r}... takes {len(row)} "
                            f"tokens, but the model has {limit} positions: shorten the prompt")
    return rows


def features(
    decoder: Decoder, requests: Sequence[Request], end: str = "target", progress: bool = False
) -> Float[Tensor, "requests two layers heads size"]:
    """Output of every head at the last token of the new ([:, 0]) and of the old fact ([:, 1]), or ("prompt") of their
    prompts."""
    outputs = head_outputs(decoder, sentence_rows(decoder, requests, end), progress)
    return outputs.unflatten(0, (len(requests), 2))


def says_targets(decoder: Decoder, requests: Sequence[Request]) -> Bool[Tensor, " requests"]:
    """Whether each token of a request's new target is the likeliest one behind its prompt and the target's tokens before it."""
    return torch.tensor(recall(decoder.model, decoder.tok, requests).said, dtype=torch.bool)


def probe(
    outputs: Float[Tensor, "requests two layers heads size"], voters: Sequence[int], share: float, seed: int | None,
    facts: Sequence[int] | None = None,
) -> Relevance:
    """One probe a head on the voters' sentences; `share` of them, shuffled with `seed` (None: as they stand), validates.

    facts: which fact each request tells, where several tell the same one: those come to the same part. Raises UserError for
    fewer than two voters, or as many as leave a part empty.
    """
    if facts is None:
        training, validation = probes.split(voters, share, seed)
    else:
        parts = probes.split(list(dict.fromkeys(facts[i] for i in voters)), share, seed)
        training, validation = ([i for i in voters if facts[i] in part] for part in parts)
    label = torch.tensor([True, False])

    def part(facts: list[int]) -> tuple[Tensor, Tensor]:
        return outputs[facts].flatten(0, 1).flatten(1, 2), label.repeat(len(facts))

    model = probes.fit(*part(training))
    x, y = part(validation)
    right = (model.predict(x) == y[:, None]).double().mean(0)
    return Relevance(right.unflatten(0, outputs.shape[2:4]), list(voters), training, validation)
