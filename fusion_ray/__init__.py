"""Fuse the knowledge of several chat LLMs of any architecture and tokenizer into one model, on Ray."""

__version__ = "0.1.0"
