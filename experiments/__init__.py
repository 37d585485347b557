"""The programs: each module with a ``main`` runs as ``python -m experiments.<module>``."""

from common.programs import guard_start

guard_start(__name__)
