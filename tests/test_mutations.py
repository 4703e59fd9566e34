"""The changes that `make mutants` makes: the same for a seed, where they matter, and listed ones that still fit."""

from mutants import PACKAGE, all_packages, change_of, checks_of, drawn_mutants, listed_mutants
from toys.listed_mutants import EQUIVALENT
from toys.mutations import compiles, list_mutations

SOURCE = '''"""Docs of 3 things."""

from typing import Literal


def pick(values: list[int], kind: Literal[1, 2] = 1) -> int:
    """Add 1."""
    assert len(values) > 2, "more than 2"
    if not values or values[0] < 0:
        raise ValueError(f"{len(values) + 1} values")
    logger.info(len(values) + 7)
    pairs = zip(values, values, strict=True)
    return max(values) - sum(a * b for a, b in pairs) + len("ä") + 2 + 7
'''


def test_every_operator_is_tried_where_it_changes_what_the_code_does() -> None:
    found = {(mutation.before, mutation.after) for mutation in list_mutations(SOURCE)}
    assert found >= {
        ("not values", "values"),
        ("not values or values[0] < 0", "not values and values[0] < 0"),
        ("not values or values[0] < 0", "values[0] < 0"),
        ("values[0] < 0", "values[0] <= 0"),
        ("values[0] < 0", "values[0] >= 0"),
        ("a * b", "a / b"),
        ("max(values)", "min(values)"),
        ("2", "3"),
        ("2", "1"),
        ("0", "1"),
    }  # fmt: skip
    assert ("1", "2") in found, "a default"
    assert not found & {("7", "8"), ("7", "6")}, "a chosen size"


def test_docstrings_annotations_messages_logging_and_assertions_stay_as_they_are() -> None:
    mutations = list_mutations(SOURCE)
    assert {mutation.line for mutation in mutations} == {6, 9, 13}
    assert len([mutation for mutation in mutations if mutation.line == 6]) == 2, "the default, and no annotation"
    kept = ("more than 2", "Literal[1, 2]", "strict=True", "+ 7)", "+ 1} values")
    assert all(part in mutation.text for mutation in mutations for part in kept)
    assert all(compiles(mutation) for mutation in mutations)


def test_a_seed_draws_the_same_from_every_package_and_another_seed_others() -> None:
    packages = ["chat", "storage"]
    one, again, other = (drawn_mutants(packages, seed, 3) for seed in (0, 0, 1))
    assert one == again and one != other
    assert [mutant.file.split("/")[0] for mutant in one] == ["chat"] * 3 + ["storage"] * 3
    assert all(compiles(mutant.mutation) for mutant in one)


def test_every_listed_mutant_fits_its_file_and_every_package_has_one() -> None:
    listed = listed_mutants(all_packages())
    assert all(compiles(mutant.mutation) and mutant.tests for mutant in listed)
    assert {mutant.file.split("/")[0] for mutant in listed} >= set(all_packages()) - {"root"}


def test_a_file_is_tried_by_its_doctests_its_package_and_what_stands_beside_it() -> None:
    assert checks_of("chat/spans.py") == (
        "fusion_ray/chat/spans.py",
        "tests/chat",
        "tests/property/test_chat_boundaries.py",
    )
    assert checks_of("corpus/split.py") == ("fusion_ray/corpus/split.py", "tests/corpus")
    assert checks_of("targets/worker.py")[1:] == ("tests/targets", "tests/integration/test_targets.py")
    assert "tests/cli" in checks_of("errors.py")


def test_what_is_called_equivalent_still_stands_in_its_file() -> None:
    for change in EQUIVALENT:
        mutations = list_mutations((PACKAGE / change.file).read_text())
        assert [change_of(change.file, mutation) for mutation in mutations].count(change) == 1, change
