"""How aligned tokens are drawn: groups under each other, wrapped to the width, and distributions beside."""

import pytest
from toys.screen import printed, styled

from fusion_ray.cli.align import draw_groups
from fusion_ray.fused.align.view import Entry, GroupView, TokenView


def token(
    text: str, top: tuple[tuple[str, float, bool], ...] = (), projected: tuple[tuple[str, float, bool], ...] = ()
) -> TokenView:
    return TokenView(text, 0, 0, None, tuple(Entry(*entry) for entry in top), tuple(Entry(*e) for e in projected))


PLAIN = [
    GroupView((token("The"),), (token("The"),)),
    GroupView((token(" c"), token("at")), (token(" cat"),)),
    GroupView((token("."),), ()),
]
NARROW = ["pivot  [The]", "source [The]", "", "pivot  [·c|at] [.]", "source [·cat ] [ ]"]
MIDDLE = ["pivot  [The] [·c|at]", "source [The] [·cat ]", "", "pivot  [.]", "source [ ]"]
WIDE = ["pivot  [The] [·c|at] [.]", "source [The] [·cat ] [ ]"]
EACH = [*NARROW[:2], "", "pivot  [·c|at]", "source [·cat ]", *MIDDLE[2:]]


@pytest.mark.parametrize(
    ("width", "expected"), [(1, EACH), (18, EACH), (19, NARROW), (20, NARROW), (21, MIDDLE), (24, MIDDLE), (25, WIDE)]
)
def test_groups_are_wrapped_where_the_next_one_has_no_room(width: int, expected: list[str]) -> None:
    assert printed(draw_groups(PLAIN, width)) == expected


def test_groups_that_are_cut_in_another_way_stand_out() -> None:
    assert styled(draw_groups(PLAIN, 80)) == [
        (text, "bold cyan") for text in ("[·c|at]", "[.]", "[·cat ]", "[ ]")
    ]  # fmt: skip


def test_distributions_stand_beside_each_token_of_the_pivot() -> None:
    groups = [
        GroupView((token("a\x1b", (("a", 0.75, True), ("b", 0.256, False)), (("p", 0.5, False),)),),
                  (token("A", (("s", 1.0, False),)),)),
        GroupView((token("x"), token("y", (("y", 0.5, False),))), (token("xy", (("q", 0.125, False),)),)),
    ]  # fmt: skip
    parts = draw_groups(groups, 80)
    assert printed(parts)[2:] == [
        "",
        "pivot token   source says  projected  pivot says",
        "a\\x1b         s 1.00       p 0.50     a 0.75  b 0.26",
        "x             q 0.12",
        "y                                     y 0.50",
    ]
    assert ("a 0.75", "green") in styled(parts) and len(styled(parts)) == 3
    assert len(printed(parts[-1:], width=30)) == 4, "rows are cut and not broken"
