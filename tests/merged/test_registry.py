"""A merge method is a section of the recipe and one function in the file of its name, and nothing else."""

import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cogapp import Cog
from toys.merging import CASES, ArrayTensor, merge_blocked

import fusion_ray
from fusion_ray.errors import RecipeError
from fusion_ray.merged import methods
from fusion_ray.merged.mergekit_config import parse_config
from fusion_ray.merged.method_table import method_table
from fusion_ray.merged.methods import naive, registry, sce
from fusion_ray.merged.methods.blocks import Block
from fusion_ray.merged.methods.registry import find_method
from fusion_ray.recipe.merge_methods import METHODS, MergeMethod

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", METHODS)
def test_a_section_has_one_function_in_the_file_of_its_name(kind: str) -> None:
    function = find_method(kind)
    assert function.__module__ == f"{methods.__name__}.{kind}"
    assert function.__name__ == f"merge_{kind}"  # type: ignore[attr-defined]


def test_every_function_has_a_section() -> None:
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        import_module(module.name)
    assert set(registry._FUNCTIONS) == set(METHODS)


def test_every_section_can_be_chosen_in_a_recipe() -> None:
    def below(section: type[MergeMethod]) -> Iterator[type[MergeMethod]]:
        for child in section.__subclasses__():
            yield child
            yield from below(child)

    assert {section for section in below(MergeMethod) if "kind" in section.model_fields} == set(METHODS.values())


def test_every_method_is_compared_with_an_oracle_of_its_own() -> None:
    assert {case.kind for case in CASES} == set(METHODS)
    assert not [kind for kind in METHODS if not hasattr(naive, f"naive_{kind}")]


@dataclass
class CountedTensor:
    """A tensor that counts how often it is read."""

    tensor: ArrayTensor
    reads: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def blocks(self) -> Iterator[Block]:
        self.reads += 1
        yield from self.tensor.blocks()


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_reads_its_tensor_as_often_as_its_section_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sce, "_KEPT_BYTES", 0)  # As if the tensor were a large one.
    reads = []
    for case in CASES:
        if case.kind == kind:
            tensor = CountedTensor(ArrayTensor(tuple(case.models((6, 5))), 2))
            for _ in merge_blocked(kind, tensor, case.has_base, **case.given).blocks:  # type: ignore[arg-type]
                pass
            reads.append(tensor.reads)
    assert max(reads) == METHODS[kind].passes


@pytest.mark.parametrize("kind", METHODS)
def test_a_mergekit_config_must_name_the_base_of_a_method_that_has_a_place_for_one(kind: str) -> None:
    document = {"merge_method": kind, "models": [{"model": "a"}, {"model": "b"}]}
    if METHODS[kind].base in ("required", "a target"):
        with pytest.raises(RecipeError, match=f"'{kind}' needs a base_model"):
            parse_config(document)
        document["base_model"] = "a"
    assert parse_config(document).merge_method == kind


def test_the_table_in_the_documents_is_made_from_the_sections() -> None:
    page = ROOT / "docs" / "merged.md"
    assert method_table() in page.read_text(), "run `make docs`"
    assert Cog().main(["cog", "--check", str(page)]) == 0


SECTION = '''
class Midpoint(MergeMethod):
    """The point at the share `how_far` between the base and the mean of the targets."""

    kind: Literal["midpoint"] = "midpoint"
    how_far: PerTarget = 0.5


AnyMethod = Annotated[
    Midpoint |'''
FUNCTION = """
import numpy as np
from fusion_ray.merged.methods.blocks import MergedTensor
from fusion_ray.merged.methods.registry import method
from fusion_ray.recipe.merge_methods import Midpoint


@method(Midpoint)
def merge_midpoint(tensor, parameters, context):
    shares = [share / len(context.targets) for share in context.per_target(parameters.how_far)]
    weights = np.array([1 - sum(shares), *shares], dtype=np.float32)
    return MergedTensor(None, (np.tensordot(weights, block.values_MRC, 1) for block in tensor.blocks()))
"""
USE = """
from toys.merging import merge_arrays, models
from fusion_ray.merged.mergekit_config import parse_config
from fusion_ray.merged.mergekit_parameters import Scope, resolve_parameters
from fusion_ray.merged.method_table import method_table
from fusion_ray.recipe import parse_recipe

base, one, other = arrays = models((3, 4), targets=2)
assert abs(merge_arrays("midpoint", arrays) - (base / 2 + (one + other) / 4)).max() < 1e-6
merged = {"method": {"kind": "midpoint", "how_far": {"x": 0.25, "y": 1.0}}, "base": "pivot"}
sources = [{"name": name, "model": name} for name in "xy"]
recipe = parse_recipe(
    {"name": "r", "pivot": {"model": "p"}, "sources": sources, "corpus": {"path": "c"}, "merged": merged}
)
assert recipe.merged.method.parameters("xy") == {"how_far": (0.25, 1.0)}
document = {"merge_method": "midpoint", "base_model": "p", "models": [{"model": "a", "parameters": {"how_far": 1}}]}
assert parse_config(document).merge_method == "midpoint"
scope = Scope(method="midpoint", shared=({},), by_model=({"how_far": 1}, {}), t=0)
assert resolve_parameters(scope, "w", ["w", "w"]) == {"how_far": (1.0, 0.5)}
assert "| midpoint | The point at the share `how_far` between" in method_table()
"""


def test_a_new_method_is_its_section_and_its_file(tmp_path: Path) -> None:
    package = tmp_path / "fusion_ray"
    shutil.copytree(Path(fusion_ray.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    sections = package / "recipe" / "merge_methods.py"
    text = sections.read_text()
    assert text.count("\nAnyMethod = Annotated[\n   ") == 1
    sections.write_text(text.replace("\nAnyMethod = Annotated[\n   ", SECTION))
    (package / "merged" / "methods" / "midpoint.py").write_text(FUNCTION)
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
    subprocess.run([sys.executable, "-c", USE], env=os.environ | {"PYTHONPATH": paths}, cwd=tmp_path, check=True)
