"""Catalan: articles and prepositions agree with the object, so records come in two variants."""

from data import variants
from data.languages import LanguageSpec

SPEC = LanguageSpec(
    name="catalan", code="ca", tag="cat",
    context_starts=("El", "Per tant", "Perquè", "Ella", "M'encanta"),
    kl_prompt="{} és",
    parse=variants.parse,
    corpora={"wikipedia": "wikimedia/wikipedia:20231101.ca"},
)
