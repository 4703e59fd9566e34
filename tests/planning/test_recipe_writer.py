"""The recipe that `init` writes: every line that is not fixed, and the names that sources get."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusion_ray.errors import RecipeError
from fusion_ray.planning import recipe_writer
from fusion_ray.planning.recipe_writer import write_recipe
from fusion_ray.recipe import load_recipe


def model(folder: Path, weights: int = 0, **config: Any) -> str:
    """A folder that has what `init` looks at: the configuration, and files of weights by their sizes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"} | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"0" * weights)
    return str(folder)


def written(folder: Path, sources: list[str], pivot: str, rows: list[dict[str, Any]]) -> list[str]:
    corpus = folder / "chats.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_recipe(pivot, sources, str(corpus), folder / "my recipe!.yaml")
    return (folder / "my recipe!.yaml").read_text().splitlines()


def chat(domain: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    return {"messages": messages} | ({"domain": domain} if domain else {})


@pytest.mark.parametrize("gpu", [False, True])
def test_a_recipe_has_what_was_seen_of_models_corpus_and_machine(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_writer, "_has_gpu", lambda: gpu)
    pivot = model(tmp_path / "pivot", 20_000_000, architectures=["ToyLM", "Other"], vocab_size=32_000)
    math = model(tmp_path / "Math model", 4_000_000, max_position_embeddings=1024)
    lines = written(tmp_path, [math], pivot, [chat("b"), chat(), {"messages": []}, chat("a"), chat("b")])
    assert lines[0] == (
        "# Fuses 1 source model(s) into the pivot. Next: `fusion-ray inspect PIVOT CHATS` shows the chats as a model"
    )
    assert "name: my-recipe-" in lines
    assert f'pivot: {{model: "{pivot}"}}  # ToyLM, vocabulary 32,000, 0.02 GB of weights' in lines
    assert f'  - {{name: math-model, model: "{math}"}}  # toy, vocabulary 0, 0.00 GB of weights' in lines
    assert "# 1 file(s); of the first 5 chats 4 are usable; domains: a, all, b" in lines
    assert lines.count("  max_length: 1024") == 2
    asked = {"shard_rows: 512", f"gpus_per_actor: {int(gpu)}", f"gpus_per_worker: {int(gpu)}"}
    asked |= {f"actors: {{min: 1, max: {8 if gpu else 1}}}", f"zero_stage: {2 if gpu else 0}"}
    assert asked <= {line.strip() for line in lines}
    assert any(line.startswith(f"  engine: {'vllm' if gpu else 'transformers'}  #") for line in lines)
    assert load_recipe(tmp_path / "my recipe!.yaml").sources[0].name == "math-model"


@pytest.mark.parametrize(
    ("positions", "expected"), [([None, None], 2048), ([4096, 8192], 2048), ([2047, 4096], 2047), ([4096, 2047], 2047)]
)
def test_chats_are_no_longer_than_any_of_the_models_reads(
    positions: list[int | None], expected: int, tmp_path: Path
) -> None:
    folders = [
        model(tmp_path / f"m{n}", **({"max_position_embeddings": most} if most else {}))
        for n, most in enumerate(positions)
    ]
    assert f"  max_length: {expected}" in written(tmp_path, folders[1:], folders[0], [chat()])


@pytest.mark.parametrize(
    ("domains", "shown"), [(["e", "d", "c", "b", "a"], "a, b, c, d, e"), (list("fedcba"), "a, b, c, d, e, ...")]
)
def test_five_domains_are_named_at_most(domains: list[str], shown: str, tmp_path: Path) -> None:
    lines = written(tmp_path, [model(tmp_path / "m")], model(tmp_path / "p"), [chat(domain) for domain in domains])
    assert lines[lines.index("corpus:") - 1].endswith(f"usable; domains: {shown}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "first 0 rows (the file is empty)"),
        ([{"messages": []}, {"messages": 5}], "first 2 rows (nothing to read in messages: no text"),
    ],
)
def test_a_corpus_without_a_chat_is_refused_with_the_first_reason(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        written(tmp_path, [model(tmp_path / "m")], model(tmp_path / "p"), rows)
    assert message in str(error.value)
    assert not (tmp_path / "my recipe!.yaml").exists()


def test_sources_are_named_by_the_last_part_of_their_path_and_no_name_is_given_twice(tmp_path: Path) -> None:
    places = ["a/Big Model!", "b/Big Model!", "c/big-model-", "pivot", "d/_.-x", "e/...", "round-1", "n" * 60]
    folders = [model(tmp_path / place) for place in places]
    lines = written(tmp_path, [*folders[:3], f"{folders[3]}/", *folders[4:]], model(tmp_path / "p"), [chat()])
    names = [line.split("name: ")[1].split(",")[0] for line in lines if line.startswith("  - {name")]
    assert names == ["big-model-", "big-model--2", "big-model--3", "pivot-2", "x", "source", "round-1-2", "n" * 50]


def test_the_architecture_is_the_first_named_or_the_kind_of_model(tmp_path: Path) -> None:
    folders = [model(tmp_path / "m0", architectures=[]), model(tmp_path / "m1", architectures=["A", "B"])]
    config = json.loads((tmp_path / "m0" / "config.json").read_text())
    lines = written(tmp_path, folders, model(tmp_path / "p"), [chat()])
    facts = [line.split("# ")[1].split(",")[0] for line in lines if line.startswith("  - {name")]
    assert facts == [config["model_type"], "A"]


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "my recipe!.yaml").write_text("mine")
    with pytest.raises(RecipeError, match="exists"):
        written(tmp_path, [model(tmp_path / "m")], model(tmp_path / "p"), [chat()])
    assert (tmp_path / "my recipe!.yaml").read_text() == "mine"
