"""Bytes on disk: shards, manifests, checkpoints. Knows formats, not methods."""
