"""The world's records in the schema that bilingual data sets have: two variants where prompts agree with the object."""

from data.world.generate import World
from data.world.objects import INSTRUMENTS, RIVERS
from data.world.records import counterfact
from data.world.relations import BY_ID

ARTICLES = ("el ", "la ")
"""Articles that a Catalan prompt ends in; an elided article ("l'arpa") is written in one with the noun, and stays there."""
PROMPTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")


def bilingual(world: World, language: str) -> list[dict]:
    """All facts, aligned by ``case_id``: in English as :func:`counterfact` has them; in Catalan the blocks ``eval_target_new``
    and ``eval_target_true``, whose prompts end in the article of their object where its relation asks for one.

    Prompt and object together are the sentences of the corpus.
    """
    records = counterfact(world, language)
    return records if language == "en" else [_in_variants(record) for record in records]


def _in_variants(record: dict) -> dict:
    rewrite = record["requested_rewrite"]
    articled = BY_ID[rewrite["relation_id"]].objects in (INSTRUMENTS, RIVERS)
    blocks = {f"eval_{name}": _block(record, name, articled) for name in ("target_new", "target_true")}
    other_keys = {key: value for key, value in record.items() if key not in ("requested_rewrite", *PROMPTS)}
    return {"relation_id": rewrite["relation_id"], **other_keys, **blocks}


def _block(record: dict, name: str, articled: bool) -> dict:
    rewrite, target = record["requested_rewrite"], record["requested_rewrite"][name]
    article = next((article for article in ARTICLES if target["str"].startswith(article)), "") if articled else ""
    ending = f" {article.strip()}" if article else ""
    return {
        "requested_rewrite": {"prompt": rewrite["prompt"] + ending, "subject": rewrite["subject"],
                              name: {**target, "str": target["str"].removeprefix(article)}},
        **{key: [prompt + ending for prompt in record[key]] for key in PROMPTS[:3]},
        "generation_prompts": record["generation_prompts"],
    }
