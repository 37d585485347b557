"""Figures of results: each module with a ``main`` or ``command`` runs as ``python -m figures.<module>``."""

from common.programs import guard_start

guard_start(__name__)
