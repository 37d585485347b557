"""Networks of the published MEND and KE, by the names of their own checkpoints, as those of this package."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.errors import UserError

_MEND_KEY = re.compile(r"mend\.(\([^)]*\)|[^.]+)\.(mlp[12]?)\.layers\.(\d+)\.u")
_KE_NAMES = {"condition.lstm._module.": "condition.lstm.", "condition.linear._linear_layers.0.": "condition.linear.",
             ".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


def mend_state(tensors: Mapping[str, Tensor], vocabulary: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(options that the shapes tell, state): of MEND (`mend.`), and of SERAC's port of it (`gtn.`).

    Not told by shapes: norm, init and descent. Raises UserError if there is no such network.
    """
    of_mend = {name: tensor for name, tensor in tensors.items() if name.startswith(("mend.", "gtn.", "edit_lrs"))}
    state = {re.sub(r"^gtn\.", "mend.", name): tensor for name, tensor in of_mend.items()}
    networks = [(match, state[match[0]]) for match in map(_MEND_KEY.fullmatch, state) if match]
    _check_matrices({match[0]: u for match, u in networks})
    if not networks or "edit_lrs" not in state:
        raise UserError("holds no MEND: no networks mend.* or gtn.* with their edit_lrs")
    sides = {match[2] for match, _ in networks}
    editors = {match[1]: {other[2] for other, _ in networks if other[1] == match[1]} for match, _ in networks}
    options = {
        "shared": networks[0][0][1].startswith("("),
        "combine": sides == {"mlp"},
        "n_hidden": max(int(match[3]) for match, _ in networks),
        "rank": max(u.shape[1] for _, u in networks),
        "x_only": sides == {"mlp1"},
        "delta_only": sides == {"mlp2"},
        "one_sided": len(sides) > 1 and any(len(of_editor) == 1 for of_editor in editors.values()),
    }
    return options, state


def ke_state(tensors: Mapping[str, Tensor], vocabulary: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(options that the shapes tell, state): of KE as MEND has it (`editor.`).

    The row that was added to the embedding for padding is dropped: padding is never read. Raises UserError if there is no
    such network.
    """
    state = {}
    for name, tensor in tensors.items():
        if name.startswith("editor."):
            name = name.removeprefix("editor.")
            for old, new in _KE_NAMES.items():
                name = name.replace(old, new)
            state[re.sub(r"^conditioners\.(\w+)_conditioner\.conditioners\.", r"conditioners.\1.layers.", name)] = tensor
    names = embedding, hidden, linear = "condition.embedding.weight", "condition.lstm.weight_hh_l0", "condition.linear.weight"
    if not set(names) <= state.keys():
        raise UserError("holds no KE: no network editor.condition")
    _check_matrices({name: state[name] for name in names})
    state[embedding] = state[embedding][:vocabulary]
    return {"hidden_dim": state[hidden].shape[1], "condition_dim": state[linear].shape[0]}, state


def _check_matrices(tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError for a weight that is no matrix."""
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            raise UserError(f"{name}: has the shape {list(tensor.shape)}, where a matrix is expected")
