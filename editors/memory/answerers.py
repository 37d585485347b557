"""What answers prompts in an edit's scope: SERAC's counterfactual decoder, or the label that a lookup cache holds."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from editors.core.budget import ENCODER_TOKENS, LOGITS
from editors.core.fingerprint import model_fingerprint, tokenizer_fingerprint
from editors.core.modules import input_device
from editors.core.prompts import pad_batch, pad_id, target_ids
from .form import Form
from .routing import unrouted
from .scope import nearest, ScopeClassifier
from .store import EditStore, Entry
from .tokens import encode, first_piece, window, without_end


class MemoryAnswerer(ABC):
    """Answers with the edit of a memory that a prompt is nearest to. A prompt without any text is in no edit's scope."""

    measure: str
    """What `find` tells."""

    def __init__(self, memory: EditStore, tok: Any):
        self.memory, self.tok = memory, tok

    def text(self, ids: Sequence[int]) -> str:
        """What tokens of the edited model say."""
        return self.tok.decode(ids, skip_special_tokens=True)

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[int | None]:
        """The edit that answers each prompt, or None where it is in no edit's scope."""
        with_text = [number for number, prompt in enumerate(prompts) if self.text(prompt).strip()]
        nearest_edits = self.find([prompts[number] for number in with_text]) if with_text else []
        inside = {number: edit for number, (value, edit) in zip(with_text, nearest_edits) if self.is_inside(value)}
        return [inside.get(number) for number in range(len(prompts))]

    @abstractmethod
    def find(self, prompts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """(how near, which edit) of each prompt."""

    @abstractmethod
    def is_inside(self, value: float) -> bool:
        """Whether a prompt that is so near is in the edit's scope."""


class Reading(ABC):
    """Answers by a decoder, which reads what stands for the edit in front of the prompt. It may be the edited model itself."""

    def reads_with(self, decoder: nn.Module, decoder_tok: Any, vocabulary: int) -> None:
        """vocabulary: how many logits the edited model has."""
        self.decoder, self.decoder_tok, self.vocabulary = decoder, decoder_tok, vocabulary
        self._same = tokenizer_fingerprint(self.tok) == tokenizer_fingerprint(decoder_tok)
        self._place: Tensor | None = None

    @abstractmethod
    def prefix(self, edit: int) -> str:
        """The text in front, with what separates it from the prompt."""

    @torch.no_grad()
    def logits(self, edits: Sequence[int], prompts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], last: int
               ) -> Float[Tensor, "rows last vocabulary"]:
        prefixes = [self.prefix(edit) for edit in edits]
        longest = window(self.decoder, self.decoder_tok)
        if self._same:
            # What is too long loses the prompt's beginning, then that of what stands behind it; never the edit.
            alone = self.decoder_tok(prefixes, verbose=False).input_ids
            room = [max(longest - len(tokens), min(longest, len(row))) for row, tokens in zip(alone, behind)]
            rows = encode(self.decoder_tok, [self.text(prompt) for prompt in prompts], room, prefixes)
            rows = [without_end(self.decoder_tok, row) for row in rows]
            n_behind = [min(len(tokens), longest - len(row)) for row, tokens in zip(rows, behind)]
            if any(n < min(last, len(tokens)) for n, tokens in zip(n_behind, behind)):
                raise UserError(f"an edit and the {last} tokens to be scored behind it take more than the {longest} tokens "
                                "that the decoder reads: shorten them")
            rows = [row + list(tokens[len(tokens) - n:]) for row, tokens, n in zip(rows, behind, n_behind)]
            return self._fitted(self._run(rows, last))
        # Another vocabulary: what is read so far is put in its words at each place that is asked for.
        texts, fixed = [], []
        for prefix, prompt, tokens in zip(prefixes, prompts, behind):
            whole = [*prompt, *tokens]
            texts += [self.text(whole[:max(0, len(whole) - back)]) for back in reversed(range(last))]
            fixed += [prefix] * last
        rows = [without_end(self.decoder_tok, row) for row in encode(self.decoder_tok, texts, longest, fixed)]
        return self._fitted(self._run(rows, 1)[:, 0, self._places()].unflatten(0, (-1, last)))

    def _fitted(self, logits: Tensor) -> Tensor:
        """As wide as the edited model's; rows of an embedding that stand for no token differ between models."""
        missing = self.vocabulary - logits.shape[-1]
        return F.pad(logits, (0, missing), value=-1e9) if missing > 0 else logits[..., :self.vocabulary]

    def _run(self, rows: Sequence[Sequence[int]], last: int) -> Float[Tensor, "rows last vocabulary"]:
        """Logits behind the last tokens of each row, in parts that fit in memory."""
        vocabulary = self.decoder.config.get_text_config().vocab_size
        size = max(1, min(ENCODER_TOKENS // max(map(len, rows)), LOGITS // (last * vocabulary)))
        logits = []
        with unrouted(self.decoder):
            for start in range(0, len(rows), size):
                part = rows[start:start + size]
                width = max(last, max(map(len, part)))
                batch = pad_batch([*part, [0] * width], pad_id(self.decoder_tok), input_device(self.decoder), side="left")
                batch = {name: tensor[:-1] for name, tensor in batch.items()}
                if "position_ids" not in inspect.signature(self.decoder.forward).parameters:
                    del batch["position_ids"]
                logits.append(self.decoder(**batch, use_cache=False, logits_to_keep=last).logits.float())
        return torch.cat(logits)

    def _places(self) -> Tensor:
        """For each token of the model a token of the counterfactual decoder's: of the same text, or its first piece."""
        if self._place is None:
            size = len(self.tok)
            texts = [self.tok.decode([i]) for i in range(size)]
            pieces = [first_piece(self.decoder_tok, text) for text in texts]
            if self.tok.eos_token_id is not None and self.decoder_tok.eos_token_id is not None:
                pieces[self.tok.eos_token_id] = self.decoder_tok.eos_token_id
            self._place = torch.tensor(pieces, device=input_device(self.decoder))
        return self._place


class SeracAnswerer(Reading, MemoryAnswerer):
    """Asks the scope classifier which edit a prompt falls under, in one pass over all prompts, and the counterfactual decoder
    what to say, which reads the edit and the prompt."""

    measure = "probability of scope"

    def __init__(self, memory: EditStore, scope: ScopeClassifier, threshold: float, decoder: nn.Module, tok: Any,
                 decoder_tok: Any, form: Form, vocabulary: int):
        """tok, decoder_tok: of the edited model and of the counterfactual decoder, which may be the model itself. vocabulary:
        how many logits the edited model has."""
        scope.prepare(memory)  # the memory keeps its vectors; what it becomes later is another edit
        MemoryAnswerer.__init__(self, memory.copy(), tok)
        self.scope, self.threshold = scope, threshold
        self.form, self._entries = form, list(memory)
        self.reads_with(decoder, decoder_tok, vocabulary)

    def find(self, prompts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        log_p, place = self.scope.best([self.text(prompt) for prompt in prompts], self.memory)
        return list(zip(log_p.exp().tolist(), place.tolist()))

    def is_inside(self, value: float) -> bool:
        return value > self.threshold

    def prefix(self, edit: int) -> str:
        return self.form.prefix(self._entries[edit])


class LookupAnswerer(MemoryAnswerer):
    """Gives a prompt whose mean hidden state is near an edit's the edit's label, word for word."""

    measure = "distance"

    def __init__(self, memory: EditStore, threshold: float, onehot_logit: float, model: nn.Module, tok: Any):
        super().__init__(memory.copy(), tok)
        self.threshold, self.onehot_logit, self.model = threshold, onehot_logit, model
        # What ends the label goes on for ever.
        end = [] if tok.eos_token_id is None else [tok.eos_token_id]
        self._labels = [[*target_ids(tok, entry.input, entry.label, entry.joined), *end] for entry in memory]
        self._vectors = memory.vectors(self._of_entries, f"lookup-{model_fingerprint(model)}-{tokenizer_fingerprint(tok)}")

    def find(self, prompts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        log_p, place = nearest(self.keys(prompts), self._vectors.to(input_device(self.model)), square=False)
        return list(zip((-log_p).tolist(), place.tolist()))

    def is_inside(self, value: float) -> bool:
        return value < self.threshold

    def _of_entries(self, entries: Sequence[Entry]) -> Tensor:
        return self.keys([without_end(self.tok, row) for row in self.tok([entry.input for entry in entries]).input_ids])

    @torch.no_grad()
    def keys(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows width"]:
        """The mean over the tokens of the last hidden states."""
        size = max(1, ENCODER_TOKENS // max(map(len, rows)))
        means = []
        for start in range(0, len(rows), size):
            batch = pad_batch(rows[start:start + size], pad_id(self.tok), input_device(self.model))
            mask = batch["attention_mask"]
            output = self.model.base_model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False)
            hidden = output.last_hidden_state.float()
            means.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(means)

    def logits(self, edits: Sequence[int], prompts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], last: int
               ) -> Float[Tensor, "rows last vocabulary"]:
        vocabulary = self.model.config.get_text_config().vocab_size
        logits = torch.zeros(len(edits), last, vocabulary, device=input_device(self.model))
        for row, (edit, tokens) in enumerate(zip(edits, behind)):
            for back in range(min(last, len(tokens) + 1)):
                position = len(tokens) - back
                token = self._labels[edit][min(position, len(self._labels[edit]) - 1)]
                logits[row, last - 1 - back, token] = self.onehot_logit
        return logits
