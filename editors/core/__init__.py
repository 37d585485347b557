"""What every editor stands on, and no method: sites, prompts, keys, values, second moments, solvers, corpora, processes."""
