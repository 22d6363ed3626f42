"""A search over settings: what is searched (definition), what is worth training on (halving), who does it (workers)."""
