"""Two-variant CounterFact records, of languages whose prompts agree with the object (MEMAT's Catalan, Tamayo et al. 2024).

A record has a block ``eval_target_new`` and a block ``eval_target_true``: the same prompts, worded for the one object and for
the other ("{} plays the" is "{} toca el" before "piano" and "{} toca la" before "guitarra").
"""

from collections.abc import Sequence
from typing import Any

from data.counterfact import read_all, read_target
from data.fields import Fields, check_template
from data.records import Record, Target, Variant, VariantRecord

PROMPTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")


def parse(raw: Sequence[Any], source: str, limit: int | None = None) -> list[Record]:
    """The first ``limit`` records (all by default), in the file's order; their own fields are those of ``eval_target_new``.

    ``source`` names the file in messages. Raises ``UserError`` as :func:`data.counterfact.parse` does, and where the blocks
    differ in their numbers of prompts, so that these can't be compared one by one.
    """
    return read_all(raw, source, limit, _record)


def _record(fields: Fields) -> Record:
    new, true = fields.nested("eval_target_new"), fields.nested("eval_target_true")
    relation_id = fields.optional_text("relation_id")
    (target_new, new_variant), (target_true, true_variant) = _block(new, "target_new"), _block(true, "target_true")
    for key in PROMPTS[:2]:
        counts = len(getattr(new_variant, key)), len(getattr(true_variant, key))
        if counts[0] != counts[1]:
            raise fields.error(f"{key!r} has {counts[0]} prompts in eval_target_new and {counts[1]} in eval_target_true")
    return VariantRecord(
        case_id=fields.integer("case_id"), target_new=target_new, target_true=target_true, relation_id=relation_id,
        schema="counterfact", joined=fields.optional_flag("joined"), extra=fields.rest(), true_variant=true_variant,
        **vars(new_variant))


def _block(fields: Fields, target: str) -> tuple[Target, Variant]:
    """(the target under the key ``target``, the prompts) of one block."""
    rewrite = fields.nested("requested_rewrite")
    prompt = rewrite.text("prompt")
    check_template(prompt, rewrite)
    paraphrases, neighbours, *others = PROMPTS
    prompts = {key: fields.texts(key) for key in (paraphrases, neighbours)} | {
        key: fields.texts(key, optional=True) for key in others}
    return read_target(rewrite.nested(target)), Variant(subject=rewrite.text("subject"), prompt=prompt, **prompts)
