"""Chats that cannot be used are rejected by id and reason, counted, and touch no other row; bad settings are named."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from toys.models import save_toy, sentencepiece_tokenizer
from transformers import AutoModelForCausalLM

from fusion_ray.errors import ArtifactError, EngineError, RecipeError
from fusion_ray.on_ray import cluster
from fusion_ray.pipeline.run import run
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.storage.artifacts import read_manifest
from fusion_ray.storage.shards import read_shard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

GOOD = [f"row-{n}" for n in range(8)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """Eight good chats and one of each bad kind; the source gives NaN after the letter ß."""
    folder = tmp_path_factory.mktemp("bad")
    tokenizer = sentencepiece_tokenizer()
    pivot = save_toy(folder / "pivot", "llama", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(pivot)
    (sick,) = set(tokenizer("ß", add_special_tokens=False)["input_ids"][-1:])
    model.model.embed_tokens.weight.data[sick] = float("nan")
    model.save_pretrained(folder / "sick")
    tokenizer.save_pretrained(folder / "sick")
    chats = [_chat(identity, f"The answer to {identity} is no.") for identity in GOOD]
    chats += [_chat("row-3", "The same id again."), _chat("sharp", "A sharp ß is here."), _chat("long", "la " * 300)]
    chats += [{"id": "critic", "messages": [{"role": "critic", "content": "Hm."}, *_chat("", "No.")["messages"]]}]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    yield parse_recipe(
        {
            "name": "bad",
            "runs": str(folder / "runs"),
            "pivot": {"model": pivot},
            "sources": [{"name": "sick", "model": str(folder / "sick")}],
            "corpus": {"path": str(folder / "chats.jsonl"), "heldout": 0, "validation": 0, "max_rejected": 0.5},
            "distributions": {"top_k": 4, "too_long": "reject", "max_rejected": 0.5},
        }
    )
    ray.shutdown()


def _chat(identity: str, answer: str) -> dict[str, object]:
    return {
        "id": identity,
        "messages": [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": answer}],
    }


def test_every_bad_chat_is_rejected_with_its_reason_and_no_other(recipe: Recipe) -> None:
    cluster.connect("local", num_cpus=2)
    run(recipe, until="distributions")
    for name, sick in (("pivot", {}), ("sick", {"sharp": "the model gave NaN"})):
        folder = Path(recipe.folder, "2_distributions", name)
        listed = [json.loads(line) for line in (folder / "rejected" / "rows.jsonl").read_text().splitlines()]
        found = {row["id"]: row["reason"] for row in listed}
        expected = {"row-3": "an earlier chat has this id", "long": "more than max_length 256", "critic": "role"} | sick
        assert found.keys() == expected.keys()
        for identity, words in expected.items():
            assert words in found[identity]
        manifest = read_manifest(str(folder))
        assert manifest.facts["rejected"] == len(expected)
        (shard,) = manifest.shards
        table = read_shard(str(folder), shard)
        used = [row["id"] for row in table.to_pylist() if row["reason"] is None]
        assert used == [*GOOD, *(["sharp"] if not sick else [])]


def test_rows_are_counted_one_by_one_though_they_are_equal(recipe: Recipe, tmp_path: Path) -> None:
    nameless = {"messages": _chat("", "Twice.")["messages"]}
    chats = [_chat(f"good-{n}", f"Answer {n}.") for n in range(30)] + [{"messages": []}] * 20 + [nameless] * 5
    chats += [_chat("0", f"Another {n}.") for n in range(5)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    corpus = {"path": str(path), "heldout": 0, "validation": 0, "max_rejected": 0.5}
    data = recipe.model_dump(mode="json") | {"name": "equal", "corpus": corpus}
    run(parse_recipe(data), until="corpus")
    folder = Path(recipe.folder).parent / "equal" / "1_corpus"
    assert read_manifest(str(folder)).facts["rejected"] == 28
    listed = [json.loads(line)["reason"] for line in (folder / "rejected" / "rows.jsonl").read_text().splitlines()]
    assert Counter(listed) == {
        "nothing to read in messages: no text and no messages there": 20, "an exact copy of an earlier chat": 4,
        "an earlier chat has this id": 4,
    }  # fmt: skip
    with pytest.raises(ArtifactError, match=r"28 of 60 rows cannot be used"):
        run(parse_recipe(data | {"name": "fewer", "corpus": corpus | {"max_rejected": 0.46}}), until="corpus")


def test_more_bad_chats_than_the_recipe_allows_fail_the_stage(recipe: Recipe) -> None:
    strict = recipe.model_copy(
        update={"distributions": recipe.distributions.model_copy(update={"max_rejected": 0.1, "top_k": 3})}
    )
    with pytest.raises(ArtifactError, match=r"3 of 12 rows cannot be used.*max_rejected \(10.0%\)"):
        run(strict, until="distributions")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"top_k": 1024}, EngineError, r"^.*pivot: top_k is 1024 and the tokenizer has \d+ tokens\. Lower \S+top_k\.$"),
        ({"template": "alpaca"}, RecipeError, "^template: .alpaca. is not known; expected one of"),
    ],
)
def test_what_an_actor_cannot_start_with_is_an_error_in_its_own_words(recipe: Recipe, changes, kind, words) -> None:
    changed = recipe.model_copy(update={"distributions": recipe.distributions.model_copy(update=changes)})
    with pytest.raises(kind, match=words):
        run(changed, until="distributions")


def test_shards_without_a_usable_row_go_through_the_whole_pipeline(recipe: Recipe) -> None:
    corpus = {"path": recipe.corpus.path, "heldout": 0.3, "validation": 0.2, "max_rejected": 0.5, "shard_rows": 1}
    data = recipe.model_dump(mode="json") | {"name": "alone", "corpus": corpus}
    data["fused"] |= {"max_rejected": 0.5}
    data["targets"] |= {"epochs": 1, "max_length": 256, "tokens_per_step": 256, "tokens_per_batch": 256}
    data["targets"] |= {"dtype": "float32", "zero_stage": 0}
    run(parse_recipe(data))
    fused = read_manifest(str(Path(recipe.folder).parent / "alone" / "3_fused" / "sick"))
    assert [shard.rows for shard in fused.shards] == [1] * 6
    assert fused.facts["rejected"] == sum(bool(shard.facts["rejected"]) for shard in fused.shards) == 3
    assert (Path(recipe.folder).parent / "alone" / "6_report" / "report.html").is_file()
