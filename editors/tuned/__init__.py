"""Editors that fine-tune weights of the model itself."""
