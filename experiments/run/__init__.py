"""An evaluation: what it needs, and its loops over batches, sequences and languages."""
