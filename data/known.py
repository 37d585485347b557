"""known_1000: facts that GPT-2 XL knows, for causal tracing (Meng et al. 2022, ROME)."""

from dataclasses import dataclass
from pathlib import Path

from data.download import fetch
from data.fields import Fields, check_template
from data.files import read_records


@dataclass(frozen=True)
class KnownFact:
    """``prompt`` contains ``subject``, and the model goes on with ``attribute``.

    ``template`` is the relation's phrase and ``prediction`` what GPT-2 XL wrote after it; in two of five published facts
    ``prompt`` is longer than the filled-in template, by the words the model put before the attribute. A file of one's own
    may lack the last three.
    """

    known_id: int
    subject: str
    attribute: str
    prompt: str
    template: str | None = None
    prediction: str | None = None
    relation_id: str | None = None


def load(path: str | Path | None = None, data_dir: str | Path | None = None, limit: int | None = None) -> list[KnownFact]:
    """The facts of ``path``, else of the published known_1000.json; the first ``limit`` of them.

    Raises ``UserError`` when the file is missing, can't be downloaded, or has a record that is not of this form.
    """
    path = Path(path) if path is not None else fetch("known_1000.json", data_dir)
    return [_fact(Fields(raw, f"{path.name}, record {number}")) for number, raw in enumerate(read_records(path)[:limit])]


def _fact(fields: Fields) -> KnownFact:
    subject, prompt = fields.text("subject"), fields.text("prompt")
    if subject not in prompt:
        raise fields.error(f"the prompt {prompt!r} does not contain the subject {subject!r}")
    template = fields.optional_text("template")
    if template is not None:
        check_template(template, fields, "template")
    return KnownFact(fields.integer("known_id"), subject, fields.text("attribute"), prompt, template,
                     fields.optional_text("prediction"), fields.optional_text("relation_id"))
