"""Causal tracing as a program does it: where facts come from, and the files of a trace (:mod:`editors.core.tracing` traces)."""
