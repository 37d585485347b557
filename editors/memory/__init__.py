"""Editors that change no weight: a memory of edits, and who answers the prompts in their scope (SERAC, the lookup cache)."""
