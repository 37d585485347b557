"""The programs: each module with a ``main`` runs as ``python -m experiments.<module>``."""
