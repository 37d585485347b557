"""English."""

from data import counterfact
from data.languages import LanguageSpec

SPEC = LanguageSpec(
    name="english", code="en", tag="eng",
    context_starts=("The", "Therefore", "Because", "She", "I love"),
    kl_prompt="{} is a",
    parse=counterfact.parse,
)
