"""Catalan elision and article rules, as far as names and nouns of the world need them.

Rules follow the Institut d'Estudis Catalans' grammar: a mute h counts as the vowel behind it; i and u before a vowel
are consonants and never elide ("de Iolanda"); the feminine article keeps its vowel before unstressed i, u ("la Isabel").
"""
import re
import unicodedata

_VOWEL_GROUP = re.compile(r"[aeiouàèéíòóúïü]+")


def _initial(word: str) -> str:
    """The word in lower case without a leading mute h."""
    return unicodedata.normalize("NFC", word).lower().removeprefix("h")


def starts_with_vowel(word: str) -> bool:
    """Whether the preposition "de" and the masculine article elide before `word`."""
    low = _initial(word)
    if not _VOWEL_GROUP.match(low):
        return False
    return not (low[0] in "iu" and _VOWEL_GROUP.match(low[1:]))


def _initial_stressed(word: str) -> bool:
    """Whether the first syllable of a vowel-initial word carries the stress (Catalan spelling rules)."""
    low = _initial(word.split()[0])
    groups = _VOWEL_GROUP.findall(low)
    accented = [i for i, group in enumerate(groups) if re.search("[àèéíòóú]", group)]
    if accented:
        return accented[0] == 0
    penultimate = re.search(r"([aeiou]s?|[ei]n)$", low) is not None
    return len(groups) == 1 or (len(groups) == 2 and penultimate)


def _article_elides(word: str, feminine: bool) -> bool:
    if not starts_with_vowel(word):
        return False
    return not feminine or _initial(word)[0] not in "iu" or _initial_stressed(word)


def de(word: str) -> str:
    """The preposition in front of `word`, with its space: "de " or "d'"."""
    return "d'" if starts_with_vowel(word) else "de "


def article(noun: str, gender: str) -> str:
    """The definite article in front of a noun of gender "m" or "f": "el ", "la " or "l'"."""
    if _article_elides(noun, gender == "f"):
        return "l'"
    return "la " if gender == "f" else "el "


def personal_article(name: str, gender: str) -> str:
    """The article of a first name: "en Pere", "la Maria", "l'Anna"."""
    if _article_elides(name, gender == "f"):
        return "l'"
    return "la " if gender == "f" else "en "
