"""How a target continues a prompt, what ends a sentence and what ends a word, in any script.

No language is known here, only properties that Unicode gives characters. What these can't tell, a record says (`joined`).
"""

import regex

_SPACES = r"\p{Zs}\u200b"
_WORD = r"\p{L}\p{N}\p{M}\p{Pc}\u00ad\u200c\u200d\u2060"
# Scripts without spaces between words: Han, kana and their like, what only a dictionary breaks into words (line-break class SA:
# Thai, Lao, Khmer, Myanmar, ...) and what breaks between syllables (AK, AP, AS: Balinese, Javanese, ...; Tibetan).
_UNSPACED = (r"\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Bopo}\p{sc=Yiii}\p{sc=Tang}\p{sc=Nshu}\p{sc=Kits}\p{sc=Tibt}"
             r"\p{lb=SA}\p{lb=AK}\p{lb=AP}\p{lb=AS}\u3031-\u3035\u303c\u30fc\uff70")
_unspaced = regex.compile(rf"[{_UNSPACED}]")
# Full-width characters bring their own space along.
_full_width = regex.compile(r"[[\p{ea=F}]||[\p{ea=W}&&\p{P}]||[\u30fb\uff61-\uff65]]", regex.V1)

_spaces_at_end = regex.compile(rf"[{_SPACES}]+$")
_last_base = regex.compile(r"([^\p{M}\p{Cf}])[\p{M}\p{Cf}]*$")
_letter = regex.compile(r"\p{L}")
_word_begins = regex.compile(rf"[{_WORD}]")
_word_ends = regex.compile(rf"[{_WORD}]$")
_mark = regex.compile(r"[\p{M}\u200c\u200d\u2060]")
_opening = regex.compile(r"[\p{Ps}¿¡]")
_glue = regex.compile(r"[\s\u00ad\u200c\u200d\u2060]$")
_last_letter = regex.compile(r"(\p{L})\P{L}*$")
_first_letter = regex.compile(r"[\p{P}\p{S}]*([\p{L}\p{N}])")

# Behind a space, or behind nothing, a quote opens.
_behind_space = regex.compile(r"(?:^|[\s\p{Ps}\p{Pi}])$")
_opening_apostrophe = regex.compile(rf"(?<![{_WORD}])['‘](?=\S)")
_closing_apostrophe = regex.compile(rf"(?<=\S)['’](?![{_WORD}])")
_elided = regex.compile(r"(?<![\p{L}\p{M}\p{N}])([\p{sc=Latn}\p{M}]+)['’]$")
_sibilant = regex.compile(r".*[sxz]$", regex.IGNORECASE)

_starts_closing = regex.compile(
    r"""\p{M}|[\u200c\u200d\u2060]|\p{Pe}|[.,;:!?…]+(?=\s|$|[\p{Pe}\p{Pf}"'])|["'\p{Pf}][.,;:!?…]*(?:\s|$)"""
    r"""|[[\p{Sentence_Terminal}、，：；・]--[.!?]]""", regex.V1)

_BARE_STOPS = r".!?…"
"""End a sentence where a space or nothing follows: in "3.5" and "D.C." they don't."""
_STOPS = r"\p{Sentence_Terminal}\u0f0d-\u0f12"
_CLOSERS = r"""["'\p{Pe}\p{Pf}\p{Pi}]"""
_stop_of_any = regex.compile(rf"[{_STOPS}…]{_CLOSERS}*$")
_clear_stop = regex.compile(rf"[{_BARE_STOPS}]*[[{_STOPS}]--[{_BARE_STOPS}]]", regex.V1)
_natural_stop = regex.compile(rf"\s*$|[ \t]*\n|[{_BARE_STOPS}]+{_CLOSERS}*(?:\s|$|[{_UNSPACED}])")


def continuation(prompt: str, target: str, joined: bool | None = None) -> tuple[str, str]:
    """(the prompt without spaces at its end, the text by which the target continues it: with a space in front or without).

    joined: True for no space, False for one, whatever the characters are. None: none behind a line break, an opening bracket or
    quote, an elision ("l'"), or a script without spaces; none in front of closing punctuation or a combining mark. Behind
    punctuation or a digit, a target in a script without spaces is joined where the prompt's last letter is of such a script,
    too. Else one.
    """
    bare, target = without_space(prompt), target.strip()
    if joined is None:
        joined = _is_joined(bare, target)
    return bare, target if joined else " " + target


def without_space(prompt: str) -> str:
    """The prompt without spaces at its end; line breaks and tabs stay."""
    return _spaces_at_end.sub("", prompt)


def ends_word(text: str, rest: str) -> bool:
    """Whether a word can end between a text and the rest. Scripts without spaces have no boundaries to be kept."""
    if not _word_begins.match(rest):
        return True
    if _mark.match(rest):
        return False
    last = _last_base.search(text)
    return bool(_unspaced.match(rest) or last and _unspaced.match(last[1]))


def is_whole_word(text: str, start: int, end: int) -> bool:
    """Whether what stands at these places of a text neither begins nor ends within a word."""
    begins = not _word_ends.search(text[:start]) or ends_word(text[:start], text[start:])
    return begins and ends_word(text[start:end], text[end:])


def stops(rest: str) -> bool:
    """Whether a text comes to a natural stop before the rest: the end of a sentence, of the line or of everything."""
    return bool(_natural_stop.match(rest) or _clear_stop.match(rest))


def ends_sentence(text: str) -> bool:
    """Whether a text ends in a mark that ends sentences, closing quotes and brackets left aside."""
    return bool(_stop_of_any.search(text))


def is_complete(text: str, rest: str) -> bool:
    """Whether a text ends in a mark that ends its sentence, before this rest ("Washington, D.C." needs no second full stop)."""
    return text[-1:] in tuple(_BARE_STOPS) and rest[:1].isspace() or bool(_clear_stop.match(text[-1:]))


def _is_joined(prompt: str, target: str) -> bool:
    """`continuation`'s rule for a prompt without spaces at its end."""
    if not prompt or not target:
        return False
    if _glue.search(prompt) or _starts_closing.match(target) or _opens(prompt) or _is_elided(prompt):
        return True
    last = _last_base.search(prompt)
    if last is None:
        return False
    if _unspaced.match(last[1]) or _full_width.match(last[1]):
        return True
    first = _first_letter.match(target)
    if _letter.match(last[1]) or not (_full_width.match(target) or first and _unspaced.match(first[1])):
        return False
    letter = _last_letter.search(prompt)
    return letter is None or _unspaced.match(letter[1]) is not None


def _opens(prompt: str) -> bool:
    """Whether a prompt ends in an opening bracket or quote. Some languages close with what others open with."""
    mark, before = prompt[-1], prompt[:-1]
    if _opening.match(mark):
        return True
    if mark in "“‘«‹":
        openers = {"“": "„‟", "‘": "‚‛", "«": "»", "‹": "›"}[mark]
        return sum(map(before.count, openers)) <= before.count(mark)
    if not _behind_space.search(before):
        return False
    if mark in "”»›":
        openers = {"”": "“„‟", "»": "«", "›": "‹"}[mark]
        opened = sum(map(before.count, openers))
        return opened <= before.count(mark) if opened else before.count(mark) % 2 == 0
    return mark in "'’" or mark == '"' and before.count(mark) % 2 == 0


def _is_elided(prompt: str) -> bool:
    """Whether a prompt ends in a word cut short by an apostrophe ("l'", "dell'"), not in a possessive ("the Beatles'") and not
    in a closing quote ("'Titanic'")."""
    word = _elided.search(prompt)
    if word is None or len(word[1]) > 1 and _sibilant.match(word[1]):
        return False
    before = prompt[:-1]
    return len(_opening_apostrophe.findall(before)) <= len(_closing_apostrophe.findall(before))
