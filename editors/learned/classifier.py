"""A BERT-like encoder with one logit on top: true or false (De Cao et al. 2021's fact checker)."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from common.errors import UserError
from common.tensor_files import read_tensors, write_tensors
from editors.core.pretrained import check_report, SAFE

HEAD = "classifier_head.safetensors"
"""The head's file in an encoder's folder."""


class BertClassifier(nn.Module):
    """`model`: the encoder; `classifier`: Linear(hidden -> 1) on its pooled output, or on [CLS] where it has no pooler."""

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.model = encoder
        self.classifier = nn.Linear(encoder.config.hidden_size, 1, dtype=encoder.dtype, device=encoder.device)

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None = None, **ignored
    ) -> Float[Tensor, "batch 1"]:
        """The logit of "true"; labels and whatever else a batch carries are not read."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        pooled = getattr(output, "pooler_output", None)
        return self.classifier(output.last_hidden_state[:, 0] if pooled is None else pooled)

    def save_pretrained(self, folder: str | Path) -> None:
        """The encoder's folder, as transformers writes it, and the head beside it."""
        self.model.save_pretrained(folder)
        head = {name: tensor.detach().cpu() for name, tensor in self.classifier.state_dict(prefix="classifier.").items()}
        write_tensors(Path(folder) / HEAD, head)

    @staticmethod
    def from_pretrained(source: str | Path, dtype: torch.dtype = torch.float32, **options) -> BertClassifier:
        """From what `save_pretrained` wrote; from an encoder without a head (hub id or folder) with a fresh one: seed it first.

        options: of transformers' `from_pretrained`. Raises UserError for an encoder whose checkpoint lacks parameters (those of
        a pooler aside, a part of the head), and for a head that does not fit.
        """
        encoder, report = AutoModel.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE, **options
        )
        check_report(str(source), report, new=("pooler.",))
        model = BertClassifier(encoder)
        head = Path(source) / HEAD
        if head.is_file():
            _, tensors = read_tensors(head, "head of a classifier", "copy it again", foreign=True)
            missing = {"classifier.weight", "classifier.bias"} - tensors.keys()
            if missing:
                raise UserError(f"{head}: has no {', '.join(sorted(missing))}")
            try:
                model.load_state_dict(tensors, strict=False)
            except RuntimeError as error:
                raise UserError(f"{head}: not the head of this encoder ({str(error).splitlines()[-1].strip()})") from None
        return model.eval()
