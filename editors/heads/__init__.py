"""Editors that correct attention heads after MEMIT: MEMAT and ITI, and what they share."""
