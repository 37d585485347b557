"""The one list of editors: a new one is one file with a subclass of `WeightEditor` (base.py), and one line here.

Classes are named by text and imported when they are asked for, so that this file depends on none of them.
"""

import difflib
import pkgutil

from common.errors import UserError

_EDITORS = {
    "AlphaEdit": "editors.closed_form.alphaedit:AlphaEdit",
    "EMMET": "editors.closed_form.emmet:EMMET",
    "ENN": "editors.learned.enn:ENNEditor",
    "FT": "editors.tuned.ft:FT",
    "ICE": "editors.memory.in_context:ICE",
    "ITI": "editors.heads.iti:ITI",
    "KE": "editors.learned.ke:KEEditor",
    "LU": "editors.memory.memory_editors:LookupEditor",
    "LocFT": "editors.tuned.locft:LocFT",
    "MEMAT": "editors.heads.memat:MEMAT",
    "MEMIT": "editors.closed_form.memit:MEMIT",
    "MEMIT_prune": "editors.closed_form.memit:MEMITPrune",
    "MEMIT_rect": "editors.closed_form.memit:MEMITRect",
    "MEMIT_seq": "editors.closed_form.memit:MEMITSeq",
    "MEND": "editors.learned.mend:MENDEditor",
    "ROME": "editors.closed_form.rome:ROME",
    "SCR": "editors.memory.in_context:SCR",
    "SERAC": "editors.memory.memory_editors:SERACEditor",
    "UltraEdit": "editors.closed_form.ultraedit:UltraEdit",
}

MEMORY_EDIT = "editors.memory.routed:RoutedEdit"
"""What a file of edits that are kept as texts is read into."""


def names() -> list[str]:
    """Names of all editors."""
    return sorted(_EDITORS)


def editor_class(name: str) -> type:
    """The class of the editor called `name`. Raises UserError with the nearest name if there is none."""
    if name not in _EDITORS:
        by_upper = {editor.upper(): editor for editor in _EDITORS}
        near = difflib.get_close_matches(name.upper(), by_upper, n=1)
        hint = f", did you mean {by_upper[near[0]]!r}?" if near else ";"
        raise UserError(f"unknown editor {name!r}{hint} known: {', '.join(names())}")
    return pkgutil.resolve_name(_EDITORS[name])
