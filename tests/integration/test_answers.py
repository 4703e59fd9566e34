"""Sources that answer anew: a run of the tiny demo with them, whole and from where it was stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from toys.tiny_demo import Toys, make_toys

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.run import run
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.recipe import Recipe, load_recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.storage.shards import read_shard


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    yield make_toys(tmp_path_factory.mktemp("answers"))
    ray.shutdown()


def answering(toys: Toys, *overrides: str) -> Recipe:
    """Two of the tiny demo's sources answer every chat twice."""
    given = (f"runs={toys.folder / 'runs'}", "answers.per_chat=2", "answers.max_tokens=96", *overrides)
    recipe = load_recipe(toys.recipe_path, given)
    return recipe.model_copy(update={"sources": recipe.sources[:2]})


def artifacts(recipe: Recipe) -> dict[str, Artifact]:
    return {str(artifact): artifact for artifact in build_graph(recipe)}


@pytest.fixture(scope="module")
def finished(toys: Toys) -> Recipe:
    recipe = answering(toys)
    run(recipe)
    return recipe


def test_a_source_answers_the_train_chats_that_it_knows_best_and_no_others(finished: Recipe) -> None:
    made = artifacts(finished)
    for source in (source.name for source in finished.sources):
        answers = made[f"answers/{source}"]
        corpus, asked = made["corpus"], read_manifest(answers.folder)
        counts = asked.facts["answers"]
        assert counts["asked"] == asked.rows + counts["empty"] + counts["unaskable"]
        for shard in asked.shards:
            chats = {row["id"]: row for row in read_corpus(corpus, shard.path)}
            rates = {name: rates_of(made[f"distributions/{name}"], shard.path) for name in ("pivot", source)}
            known = {row for row in chats if rates[source][row] < rates["pivot"][row]}
            rows = read_shard(answers.folder, shard).to_pylist()
            assert {row["id"].rpartition("#")[0] for row in rows} <= known
            assert len({row["id"] for row in rows}) == len(rows) <= 2 * len(known)
            for row in rows:
                before = chats[row["id"].rpartition("#")[0]]["messages"]
                *asked_messages, answer = row["messages"]
                assert asked_messages == before[: len(asked_messages)]
                assert answer["role"] == "assistant" == before[len(asked_messages)]["role"]
                assert answer["content"].strip() == answer["content"] != ""
    assert sum(read_manifest(made[f"answers/{s.name}"].folder).rows for s in finished.sources) > 20


def read_corpus(corpus: Artifact, path: str) -> list[dict[str, object]]:
    (record,) = [shard for shard in read_manifest(corpus.folder).shards if shard.path == path]
    return read_shard(corpus.folder, record).to_pylist()  # type: ignore[no-any-return]


def rates_of(scored: Artifact, path: str) -> dict[str, float]:
    (record,) = [shard for shard in read_manifest(scored.folder).shards if shard.path == path]
    rows = read_shard(scored.folder, record, ["id", "n_bytes", "real_logprobs"]).to_pylist()
    return {row["id"]: -sum(row["real_logprobs"]) / row["n_bytes"] for row in rows}


def test_targets_learn_from_the_answers_and_controls_do_not(finished: Recipe) -> None:
    made = artifacts(finished)
    for source in (source.name for source in finished.sources):
        fused, answered = (read_manifest(made[f"fused/{name}"].folder) for name in (source, f"answers/{source}"))
        asked = read_manifest(made[f"answers/{source}"].folder)
        taught = 0
        for chats, shard in zip(asked.shards, answered.shards, strict=True):
            rows = read_shard(made[f"fused/answers/{source}"].folder, shard).to_pylist()
            ids = read_shard(made[f"answers/{source}"].folder, chats, ["id"])["id"].to_pylist()
            assert [row["id"] for row in rows] == ids
            for row in rows:
                assert (row["reason"] is None) == bool(row["chosen"])
                assert row["reason"] or (set(row["chosen"]) <= {1, -1} and 1 in row["chosen"])
                taught += row["reason"] is None
        assert taught > 0
        gold = sum(shard.rows for shard in fused.shards_of("train"))
        assert read_manifest(made[f"targets/{source}"].folder).facts["rows"] == gold + taught
    assert read_manifest(made["targets/sft"].folder).facts["rows"] == gold


def test_a_source_is_believed_where_it_is_likely_right_and_wholly_about_its_own_answers(finished: Recipe) -> None:
    made = artifacts(finished)
    for source in (source.name for source in finished.sources):
        facts = {name: read_manifest(made[f"fused/{name}"].folder).facts for name in (source, f"answers/{source}")}
        assert 0 < facts[source]["alignment"][source]["trust"] <= 1
        assert facts[f"answers/{source}"]["alignment"][source]["trust"] == 1
    report = json.loads(Path(finished.folder, "6_report", "report.json").read_text())
    found = {name: sources[name]["trust"] for name, sources in report["alignment"].items() if name in sources}
    assert found == {
        s.name: read_manifest(made[f"fused/{s.name}"].folder).facts["alignment"][s.name]["trust"]
        for s in finished.sources
    }


def test_the_report_counts_the_answers_that_taught(finished: Recipe) -> None:
    report = json.loads(Path(finished.folder, "6_report", "report.json").read_text())
    made = artifacts(finished)
    assert set(report["chosen"]) == set(report["answers"]) == {source.name for source in finished.sources}
    for source, counts in report["answers"].items():
        fused = made[f"fused/answers/{source}"].folder
        rows = [r for shard in read_manifest(fused).shards for r in read_shard(fused, shard, ["reason"]).to_pylist()]
        assert counts["taught"] == [row["reason"] for row in rows].count(None) > 0
        assert counts["asked"] == len(rows) + counts["empty"] + counts["unaskable"]
    stages = [f"{stage['stage']}/{stage['name']}" for stage in report["stages"]]
    assert stages.index("distributions/pivot") < stages.index("answers/code") < stages.index("fused/answers/code")


def test_a_second_run_makes_nothing_and_other_answers_leave_the_corpus_and_its_scores_alone(
    finished: Recipe, toys: Toys
) -> None:
    assert {status.state for status in list_statuses(finished)} == {"done"}
    other = {str(s.artifact): s.state for s in list_statuses(answering(toys, "answers.temperature=0.8"))}
    stale = {name for name, state in other.items() if state != "done"}
    sources = [source.name for source in finished.sources]
    expected = {f"{stage}answers/{name}" for name in sources for stage in ("", "fused/")}
    expected |= {f"distributions/answers/{name}/{by}" for name in sources for by in ("pivot", name)}
    assert stale == expected | {f"targets/{name}" for name in sources} | {"merged", "report"}


def test_a_run_goes_on_with_the_shards_that_are_missing_and_gives_the_same_answers(finished: Recipe) -> None:
    artifact = artifacts(finished)[f"answers/{finished.sources[0].name}"]
    first, *others = (Path(artifact.folder, shard.path) for shard in read_manifest(artifact.folder).shards)
    before = [path.read_bytes() for path in (first, *others)]
    times = [path.stat().st_mtime_ns for path in others]
    assert others
    first.unlink()
    Path(artifact.folder, "MANIFEST.json").unlink()
    run(finished, until="answers")
    assert [path.read_bytes() for path in (first, *others)] == before
    assert [path.stat().st_mtime_ns for path in others] == times


def test_one_target_of_all_sources_learns_from_each_chat_s_best_source(toys: Toys) -> None:
    recipe = answering(toys, "fused.mode=multi")  # In the same folder: the corpus's distributions are there.
    run(recipe, until="fused")
    names = [source.name for source in recipe.sources]
    authors: dict[str, str] = {}
    for number, author in enumerate(names, start=1):
        fused = artifacts(recipe)[f"fused/answers/{author}"]
        for shard in read_manifest(fused.folder).shards:
            for row in read_shard(fused.folder, shard).to_pylist():
                chat = row["id"].rpartition("#")[0]
                assert authors.setdefault(chat, author) == author
                assert row["reason"] or (set(row["chosen"]) <= {number, -1} and number in row["chosen"])
                assert row["reason"] or np.isfinite(row["bits_per_byte"]).tolist() == [
                    name in ("pivot", author) for name in ("pivot", *names)
                ]
    assert set(authors.values()) == set(names)
