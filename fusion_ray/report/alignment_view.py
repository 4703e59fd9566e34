"""One held-out answer in two tokenizations, group by group, with the distributions that alignment moved."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fusion_ray.distributions.score import read_scored
from fusion_ray.fused.align.groups import pair_turns
from fusion_ray.fused.align.view import Entry, TokenView, ViewSide, view_turn
from fusion_ray.fused.fuse import Fuser

_MOST_TOKENS = 160


_ENTRIES = 6


def view_alignment(fuser: Fuser, source: str, pivot_row: pa.Table, source_row: pa.Table) -> dict[str, Any]:
    """Lay one document out for the page's viewer: plain data.

    Groups are cut by bytes in every mode of alignment; what is projected is what the recipe's mode moves.

    Args:
        fuser: Aligns as the run did.
        source: Name of the source.
        pivot_row: One usable row of the pivot's distributions.
        source_row: The same row of the source's.

    Returns:
        `groups`, each with its `pivot` and `source` tokens; how many pivot tokens are `shown`, and there are in all.
        A token has its `text`, the probability `real` of having come, and the `top` entries of its distribution
        (text, probability, whether it came); a pivot token also what was `projected` onto it.
    """
    ours, theirs = read_scored(pivot_row), read_scored(source_row)
    projection = fuser.align(source, ours, theirs)
    projector = fuser.tables_of(source, ours, theirs).projector
    sides = ViewSide(ours.answers, projector.pivot, ours.topk), ViewSide(theirs.answers, projector.source, theirs.topk)
    groups: list[dict[str, Any]] = []
    shown = 0
    for turn, partner in enumerate(pair_turns(ours.answers, theirs.answers).tolist()):
        laid_out = (
            view_turn(turn, partner, *sides, projection.groups, projection.topk, _ENTRIES) if partner >= 0 else []
        )
        for group in laid_out:
            if shown + len(group.pivot) > _MOST_TOKENS:
                return {"groups": groups, "shown": shown, "tokens": len(ours.answers)}
            groups.append({"pivot": _plain_tokens(group.pivot), "source": _plain_tokens(group.source)})
            shown += len(group.pivot)
    return {"groups": groups, "shown": shown, "tokens": len(ours.answers)}


def _plain_tokens(tokens: Sequence[TokenView]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = []
    for token in tokens:
        plain.append({"text": token.shown, "real": token.real, "top": _plain_entries(token.top)})
        if token.projected_real is not None:
            plain[-1] |= {"projected": _plain_entries(token.projected), "projected_real": token.projected_real}
    return plain


def _plain_entries(entries: Sequence[Entry]) -> list[list[Any]]:
    return [[entry.shown, round(entry.probability, 4), entry.is_real] for entry in entries]
