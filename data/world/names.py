"""Invented names: unique, pronounceable, drawn from a seeded generator."""
import random


def _words(text: str) -> list[str]:
    return text.split()


# (first name, gender); the gender picks the Catalan personal article.
FIRST_NAMES = [tuple(entry.split(":")) for entry in _words("""
Anna:f Pere:m Marta:f Oriol:m Laia:f Enric:m Isabel:f Hug:m Núria:f Jordi:m Elena:f Andreu:m Irene:f Pau:m Agnès:f
Quim:m Helena:f Bernat:m Olga:f Martí:m Carme:f Ignasi:m Rosa:f Eloi:m Iolanda:f Guillem:m Úrsula:f Arnau:m Berta:f
Ramon:m Emma:f Victor:m Alice:f Oscar:m Clara:f Simon:m Ingrid:f Tomàs:m Sofia:f Albert:m Judith:f Felix:m Eva:f
Leo:m Greta:f Ulric:m Nora:f Hector:m Diana:f Max:m Astrid:f Bruno:m Livia:f Edgar:m Mireia:f Ivan:m Zoë:f Otto:m
Ruth:f Gaspar:m Amàlia:f Kofi:m Sunniva:f Idris:m Petra:f Ravi:m Yara:f Tobias:m Wanda:f Olaf:m Lucia:f Emil:m
Thora:f Dario:m Blanca:f Hakon:m Selma:f Rufus:m Ilse:f Magnus:m
""")]

_ONSETS = _words("b br c cr d dr f fl g gr j k l m n p pl qu r s sk st t tr v w z th sh")
_INNER = _words("b c d f g l m n p r s t v z nd rt lm st rv ld nk ss ll rn mb")
_VOWELS = _words("a e i o u a e o")
_SURNAME_ENDS = _words("k n l r t x s nt rd lt ck th m ng sk")
_CITY_ENDS = _words("by don ford ville mere gate stad port ona essa ava ell ick olm")
_COMPANY_ENDS = _words("ex ia on co tek ium is ora ix um ax elo")


class NameMaker:
    """Draws names that were never drawn before, in any of its kinds.

    `rng` decides everything; the same rng state gives the same names. Names grow by a syllable when the short ones
    become scarce, so any number can be drawn.
    """

    def __init__(self, rng: random.Random, taken: set[str] = frozenset()):
        self._rng = rng
        self._taken = {name.lower() for name in taken}

    def _root(self, syllables: int) -> str:
        pick = self._rng.choice
        # One root in six starts with a vowel, so that elision has something to elide.
        start = pick(_VOWELS) + pick(_INNER) if self._rng.random() < 1 / 6 else pick(_ONSETS)
        return start + pick(_VOWELS) + "".join(pick(_INNER) + pick(_VOWELS) for _ in range(syllables - 1))

    def _unique(self, ends: list[str], joint: bool) -> str:
        for attempt in range(10_000):
            root = self._root(1 + (attempt >= 20) + (attempt >= 200))
            if joint and self._rng.random() < 0.5:
                root += self._rng.choice(_INNER) if self._rng.random() < 0.3 else "l"
            elif not joint:
                root += self._rng.choice(_INNER) + self._rng.choice(_VOWELS)
            word = root + self._rng.choice(ends)
            if word not in self._taken:
                self._taken.add(word)
                return word.capitalize()
        raise RuntimeError("the name space is exhausted; add syllables to data/world/names.py")

    def person(self) -> tuple[str, str]:
        """("First Surname", gender); the surname belongs to this person alone."""
        first, gender = self._rng.choice(FIRST_NAMES)
        return f"{first} {self._unique(_SURNAME_ENDS, joint=False)}", gender

    def city(self) -> str:
        return self._unique(_CITY_ENDS, joint=True)

    def company(self) -> str:
        return self._unique(_COMPANY_ENDS, joint=False)
