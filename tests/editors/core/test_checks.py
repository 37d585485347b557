"""Models that can't be edited are refused in one line, before anything is computed."""

import accelerate
import pytest
import torch

import editors
from common.errors import UserError
from editors.core.checks import check_editable, check_finite_weights, is_finite
from tests.models import tiny_model, tiny_tokenizer

REQUEST = {"prompt": "{} plays", "subject": "Orla Venn", "target_new": {"str": "chess"}}
FT = {"layers": [1], "num_steps": 1, "lr": 1e-3, "weight_decay": 0, "norm_constraint": False}


def in_dtype(dtype):
    def spoil(model):
        down = model.model.layers[1].mlp.down_proj
        down.weight = torch.nn.Parameter(down.weight.detach().to(dtype), requires_grad=False)
    return spoil


def filled(value):
    def spoil(model):
        with torch.no_grad():
            model.model.layers[2].mlp.up_proj.weight[3, 4] = value
    return spoil


def inference(model):
    with torch.inference_mode():
        for p in model.parameters():
            p.data = p.detach().clone()
        model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.clone())


def quantizer(model):
    model.is_quantized = True


def of_a_package(model):
    """As torchao's: a tensor that says it is float32 and knows none of its operations."""
    class Packed(torch.Tensor):
        __module__ = "torchao.dtypes"

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func in (torch.aminmax, torch.isfinite):
                raise NotImplementedError(f"Packed knows no {func}")
            return super().__torch_function__(func, types, args, kwargs or {})

    down = model.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.data.as_subclass(Packed), requires_grad=False)


def dynamic(model):
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


@pytest.mark.parametrize("alg", ["FT", "ROME"])
@pytest.mark.parametrize(("spoil", "message"), [
    (in_dtype(torch.float8_e4m3fn), "layers.1.mlp.down_proj.weight is float8_e4m3fn.*16 or 32 bits"),
    (in_dtype(torch.int8), "layers.1.mlp.down_proj.weight is int8.*16 or 32 bits"),
    (lambda model: model.to("meta"), "not in memory"),
    (lambda model: accelerate.cpu_offload(model.model.layers[1], torch.device("cpu")), "not in memory"),
    (inference, "made under torch.inference_mode"),
    (quantizer, "is quantised"),
    (dynamic, "is quantised"),
    (of_a_package, "layers.1.mlp.down_proj.weight is quantised"),
    (filled(float("nan")), "layers.2.mlp.up_proj.weight is not finite"),
    (filled(float("-inf")), "layers.2.mlp.up_proj.weight is not finite"),
])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_refused(alg, spoil, message):
    model = tiny_model("llama")
    spoil(model)
    hparams = FT if alg == "FT" else {"layers": [1], "fact_token": "subject_last", "v_num_grad_steps": 1, "v_lr": 0.5,
                                      "v_loss_layer": 3, "v_weight_decay": 0.5, "clamp_norm_factor": 4, "kl_factor": 0.06,
                                      "mom2_adjustment": False, "mom2_dataset": "x", "mom2_n_samples": 1,
             "context_template_length_params": [[5, 1]]}
    with pytest.raises(UserError, match=message) as caught:
        editors.load(alg, hparams).edit(model, tiny_tokenizer(), [REQUEST])
    assert "\n" not in str(caught.value)


def test_what_changes_is_looked_at_again():
    model = tiny_model("gpt2")
    check_editable(model)
    filled_weight = model.transformer.h[0].mlp.c_fc.weight
    with torch.no_grad():
        filled_weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="h.0.mlp.c_fc.weight is not finite"):
        check_finite_weights(model, "GPT-2")
    with torch.no_grad():
        filled_weight[0, 0] = 1.0
    check_finite_weights(model, "GPT-2")


def test_large_numbers_are_finite():
    assert is_finite(torch.full((9,), 65504.0, dtype=torch.float16))
    assert is_finite(torch.zeros(0)) and is_finite(torch.tensor([1]))
    assert not is_finite(torch.tensor([1.0, float("nan"), 2.0])) and not is_finite(torch.tensor([float("-inf"), 0.0]))
