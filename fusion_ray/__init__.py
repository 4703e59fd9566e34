"""Fuse the knowledge of several chat LLMs of any architecture and tokenizer into one model, on Ray."""

from fusion_ray._version import __version__

__all__ = ["__version__"]
