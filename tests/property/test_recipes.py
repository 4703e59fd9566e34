"""Any recipe: written down it reads back as itself, and no two of its artifacts share a folder or a name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_ray.errors import RecipeError
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.storage.artifacts import Artifact

# Words that folders, columns and tables of a run have, too.
NAMES = ("math", "code", "a", "round-1", "round-2", "Round-1", "answers", "sft", "self", "multi", "merged", "pivot",
         "gold", "train", "model", "scores", "oracle", "MANIFEST.json", "corpus", "longer", "target")  # fmt: skip
ENGINES: tuple[Any, ...] = (
    "transformers", {"kind": "vllm", "tensor_parallel": 2}, {"kind": "vllm"}, {"kind": "openai", "base_url": "http://x"},
    {"dtype": "float32"},
)  # fmt: skip
METHODS: tuple[Any, ...] = (
    "varm", {"kind": "varm", "granularity": "layer"}, "rescaled_sum", {"kind": "rescaled_sum", "reach": "each"},
    "ties", {"kind": "linear"}, {"kind": "slerp"},
)  # fmt: skip
LEAST = {"name": "r", "pivot": {"model": "p"}, "corpus": {"path": "c"}}


def is_free(name: str) -> bool:
    """Whether a source may have this name."""
    try:
        parse_recipe({**LEAST, "sources": [{"name": name, "model": "m"}]})
    except RecipeError:
        return False
    return True


FREE = tuple(filter(is_free, NAMES))


def one_or_none(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from((None, *values))


def completed(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe with what its settings need of each other, as a user would complete it."""
    targets, merged = dict(data.get("targets", {})), dict(data.get("merged", {}))
    if merged.get("method") in ({"kind": "linear"}, {"kind": "slerp"}):
        merged.pop("base", None)
        targets.pop("rounds", None)
    if targets.get("rounds", 1) > 1:
        targets["start"] = merged["base"] = "sft"
    if "longer" in targets.get("controls", ()):
        targets["start"] = "sft"
    if "controls" in targets and not (targets.get("start") == merged.get("base") == "pivot"):
        targets["controls"] = ["sft", *(control for control in targets["controls"] if control != "sft")]
    return {**data, "targets": targets, "merged": merged}


def section(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


SOURCES = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(FREE), "model": st.just("m")}, optional={"engine": st.sampled_from(ENGINES)}
    ),
    min_size=1, max_size=3, unique_by=lambda source: source["name"],
)  # fmt: skip
RECIPES = st.fixed_dictionaries(
    {**{name: st.just(value) for name, value in LEAST.items()}, "sources": SOURCES},
    optional={
        "distributions": section(engine=st.sampled_from(ENGINES), store=st.sampled_from(["compact", "plain"])),
        "answers": one_or_none({}, {"per_chat": 2}),
        "fused": section(
            mode=st.sampled_from(["pairwise", "multi"]),
            align=st.sampled_from(["bytes", "ms", {"kind": "bytes", "inner_tail": "none"}]),
            choose=st.sampled_from(["mince", {"kind": "avgce", "tau": 0.5}, {"kind": "mince", "trust": 0.5}]),
        ),
        "targets": section(
            start=st.sampled_from(["pivot", "sft"]),
            lambda_=one_or_none(0.3),
            rounds=st.integers(1, 3),
            controls=st.lists(st.sampled_from(["sft", "longer", "self", "shuffled"]), unique=True),
            adapter=one_or_none("lora", {"kind": "dora", "rank": 4}),
            early_stop=one_or_none({}, {"patience": 3}),
        ),
        "merged": section(method=st.sampled_from(METHODS), base=st.sampled_from(["pivot", "sft"])),
        "evaluate": one_or_none({"tasks": ["gsm8k"]}),
    },
).map(completed)  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FREE)))
def test_a_reserved_name_is_refused_as_such(name: str) -> None:
    with pytest.raises(RecipeError, match=f"sources: the name '{name}' is reserved"):
        parse_recipe({**LEAST, "sources": [{"name": name, "model": "m"}]})


@given(RECIPES)
def test_a_recipe_that_is_written_down_reads_back_as_itself(data: dict[str, Any]) -> None:
    given_recipe = parse_recipe(data)
    for recipe in (given_recipe, given_recipe.resolved):
        for shortened in ({}, {"exclude_defaults": True}, {"exclude_unset": True}):
            assert parse_recipe(recipe.model_dump(mode="json", **shortened)) == recipe


@given(RECIPES)
def test_a_recipe_made_in_python_is_the_one_of_the_file(data: dict[str, Any]) -> None:
    recipe = parse_recipe(data)
    parts = {name: getattr(recipe, name) for name in Recipe.model_fields}
    assert Recipe(**parts) == Recipe.model_validate(data) == recipe
    assert fingerprints(Recipe(**parts)) == fingerprints(recipe)


@given(RECIPES)
def test_no_two_artifacts_share_a_folder_or_a_name(data: dict[str, Any]) -> None:
    artifacts = graph(parse_recipe(data))
    folders = [artifact.folder for artifact in artifacts]
    assert len({str(artifact) for artifact in artifacts}) == len(set(folders)) == len(artifacts)
    # Within the folder of a model lie its shards or weights, so no other artifact may lie there.
    holders = [artifact.folder for artifact in artifacts if artifact.stage in ("distributions", "fused", "targets")]
    assert not [(a, b) for a in folders for b in holders if a.startswith(f"{b}/")]


@given(RECIPES)
def test_an_artifact_comes_after_what_it_is_made_from(data: dict[str, Any]) -> None:
    behind: set[str] = set()
    for artifact in graph(parse_recipe(data)):
        assert {made.folder for made in artifact.inputs} <= behind
        behind.add(artifact.folder)


def graph(recipe: Recipe) -> list[Artifact]:
    return build_graph(recipe, need_inputs=False)


def fingerprints(recipe: Recipe) -> list[str]:
    return [artifact.fingerprint for artifact in graph(recipe)]
