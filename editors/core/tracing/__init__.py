"""Causal tracing (Meng et al. 2022, ROME, section 2): which hidden states of which tokens carry a fact.

A prompt runs once as it is and once with noise on its subject's embeddings; then single states of the first run are put back
into the second, and what that gives back of the answer's probability is their indirect effect.
"""
