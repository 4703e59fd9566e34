"""Which split a chat belongs to: by its id and the seed alone, in the shares that the recipe asks for."""

import pytest

from fusion_ray.corpus.split import split_of
from fusion_ray.recipe import Corpus

IDS = [f"chat-{n}" for n in range(4000)]


def test_the_shares_are_those_of_the_recipe() -> None:
    corpus = Corpus(path="x", heldout=0.3, validation=0.1)
    splits = [split_of(identity, corpus, 0) for identity in IDS]
    assert splits.count("heldout") == pytest.approx(1200, abs=120)
    assert splits.count("validation") == pytest.approx(400, abs=80)
    assert set(splits) == {"heldout", "validation", "train"}


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    corpus = Corpus(path="x", heldout=0.5, validation=0.0)
    one, again, other = ([split_of(identity, corpus, seed) for identity in IDS] for seed in (0, 0, 1))
    assert one == again
    assert sum(a != b for a, b in zip(one, other, strict=True)) == pytest.approx(2000, abs=200)


def test_a_larger_held_out_share_keeps_what_was_held_out() -> None:
    few, many = Corpus(path="x", heldout=0.1), Corpus(path="x", heldout=0.2)
    held = [identity for identity in IDS if split_of(identity, few, 0) == "heldout"]
    assert held and all(split_of(identity, many, 0) == "heldout" for identity in held)


def test_without_shares_every_chat_is_for_training() -> None:
    assert {split_of(identity, Corpus(path="x", heldout=0.0, validation=0.0), 0) for identity in IDS} == {"train"}


@pytest.mark.parametrize(
    ("heldout", "validation", "split"),
    [
        (0.7498624586886498, 0.1, "validation"),  # The first 8 bytes of sha256("split:5:chat-0") over 2**64.
        (0.7498624586886499, 0.1, "heldout"),
        (0.0, 0.7498624586886498, "train"),
        (0.0, 0.7498624586886499, "validation"),
        (0.25, 0.4998624586886498, "train"),
        (0.25, 0.5, "validation"),
    ],
)
def test_a_share_ends_before_its_bound(heldout: float, validation: float, split: str) -> None:
    assert split_of("chat-0", Corpus(path="x", heldout=heldout, validation=validation), 5) == split
