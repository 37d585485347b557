"""Editors that solve for the new weights: ROME, MEMIT and its variants, EMMET, AlphaEdit, and what they share."""
