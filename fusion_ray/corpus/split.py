"""Which split a chat belongs to."""

import hashlib

from fusion_ray.recipe import Corpus


def split_of(identity: str, corpus: Corpus, seed: int) -> str:
    """The split of a chat: a hash of seed and id against the shares, so it never depends on the other chats."""
    digest = hashlib.sha256(f"split:{seed}:{identity}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < corpus.heldout:
        return "heldout"
    return "validation" if point < corpus.heldout + corpus.validation else "train"
