"""Rephrasings without a model: rewritings that keep the meaning of a question or a statement.

The published rephrasings are back-translations; :func:`data.episodes.back_translation.rephrase` makes such where translation
models are at hand. These templates need nothing, and vary the form only.
"""
import re

_SAME = ((r"^What is\b", "What's"), (r"^What's\b", "What is"), (r"^Which\b", "What"), (r"^In which\b", "In what"),
         (r"^Who is\b", "Who's"), (r"^Where is\b", "Where's"), (r"^What was the name of\b", "What was"),
         (r"^What year\b", "In which year"), (r"^When was\b", "On what date was"))
_FRAMES = {"en": ("Please tell me: {}", "I would like to know: {}", "Here is a question: {}"),
           "ca": ("Digues-me: {}", "Voldria saber: {}", "Tinc una pregunta: {}")}
_STATEMENTS = ("It is true that {}", "As we know, {}", "I heard that {}")


def questions_like(question: str, language: str = "en") -> list[str]:
    """Other forms of a question, at least one."""
    rewritten = [re.sub(pattern, words, question, count=1) for pattern, words in _SAME
                 if language == "en" and re.search(pattern, question)]
    return list(dict.fromkeys([*rewritten, *(frame.format(question) for frame in _FRAMES[language])]))


def statements_like(statement: str) -> list[str]:
    """Other forms of an English statement."""
    return [frame.format(statement) for frame in _STATEMENTS]
