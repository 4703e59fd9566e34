"""From checkpoints to one checkpoint: plan a merge, read the slices it needs, write its files. No ray here."""
