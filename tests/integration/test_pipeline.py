"""The tiny recipe whole on local Ray: everything it promises to leave behind, and again after kill -9 in each stage."""

import doctest
import html
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from toys.targets import much_behind
from toys.tiny_demo import Toys, make_toys

from fusion_ray import api
from fusion_ray.distributions.stage import build_distributions
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.run import run
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.progress import silent
from fusion_ray.recipe import Recipe, load_recipe
from fusion_ray.report.reading import RunReport
from fusion_ray.storage.artifacts import read_manifest
from fusion_ray.storage.shards import read_shard

_CONTENT = ("*.parquet", "*.safetensors", "weights.json")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    return make_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def finished(toys: Toys) -> Iterator[Recipe]:
    """The undisturbed run."""
    run(toys.recipe)
    yield toys.recipe
    ray.shutdown()


def beside(finished: Recipe, toys: Toys, runs: Path, *settings: str, stages: int, sources: int) -> Recipe:
    """A recipe of fewer sources whose first stages the finished run has made: they are copied, not made again."""
    for folder in sorted(Path(finished.folder).glob("[1-6]_*"))[:stages]:
        shutil.copytree(folder, runs / finished.name / folder.name)
    recipe = load_recipe(toys.recipe_path, (f"runs={runs}", *settings))
    return recipe.model_copy(update={"sources": recipe.sources[:sources]})


def states(recipe: Recipe) -> dict[str, str]:
    return {str(status.artifact): status.state for status in list_statuses(recipe)}


def test_a_run_leaves_every_artifact_done_and_a_second_run_makes_nothing(finished: Recipe) -> None:
    assert set(states(finished).values()) == {"done"}
    before = {path: path.stat().st_mtime_ns for path in Path(finished.folder).rglob("MANIFEST.json")}
    run(finished)
    assert before == {path: path.stat().st_mtime_ns for path in Path(finished.folder).rglob("MANIFEST.json")}


def test_the_examples_of_the_public_functions_hold(
    toys: Toys, finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run in a folder where `fusion-ray demo` has been; here lies the tiny demo."""
    recipe = yaml.safe_load(toys.recipe_path.read_text()) | {"name": "demo", "runs": "runs"}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished.folder)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("models", "chats.jsonl"):
        (tmp_path / "demo" / name).symlink_to(toys.recipe_path.parent / name)
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(api)
    assert found.failed == 0 and found.attempted > 15


def test_a_notebook_shows_the_report_as_a_table_of_escaped_text(finished: Recipe) -> None:
    report = RunReport.read(finished.folder)
    shown = report._repr_html_()
    assert f"<p>{html.escape(str(report))}</p>" in shown  # "p < 0.001" among it
    assert all(f"<td>{model}</td>" in shown for model in report.bits_per_byte)
    assert report.documents().column_names[:3] == ["id", "domain", "n_bytes"]
    assert Path(report.merged, "config.json").is_file() and Path(report.page).is_file()


def test_shard_i_of_every_stage_holds_the_rows_of_shard_i_of_the_corpus(finished: Recipe) -> None:
    artifacts = {str(artifact): artifact for artifact in build_graph(finished)}
    corpus = artifacts["corpus"]
    for name in ("distributions/pivot", "distributions/code", "fused/reference"):
        folder = artifacts[name].folder
        manifest = read_manifest(folder)
        theirs = {shard.path: shard for shard in manifest.shards}
        for shard in read_manifest(corpus.folder).shards_of("train"):
            expected = read_shard(corpus.folder, shard, ["id"])
            assert read_shard(folder, theirs[shard.path], ["id"]).equals(expected)


def test_draws_stand_for_whole_distributions_and_reach_the_fused_set_uncut(toys: Toys, tmp_path: Path) -> None:
    settings = ("distributions.store={kind: sampled, draws: 6}", "targets.tail=sampled", "fused.choose.trust=0.9")
    recipe = load_recipe(toys.recipe_path, (f"runs={tmp_path}", *settings))
    run(recipe, until="fused")
    artifacts = {str(artifact): artifact for artifact in build_graph(recipe)}
    widths: dict[str, set[int]] = {"distributions/pivot": set(), "fused/code": set()}
    for name, found in widths.items():
        for shard in read_manifest(artifacts[name].folder).shards:
            columns = read_shard(artifacts[name].folder, shard, ["real_logprobs", "topk_logprobs"])
            positions = len(columns["real_logprobs"].combine_chunks().flatten())
            logprobs = columns["topk_logprobs"].combine_chunks().flatten().to_numpy().reshape(positions, -1)
            found.add(logprobs.shape[1])
            if name == "distributions/pivot":
                np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1, atol=0.01)
    # The gold token stands beside the six where the source is not wholly believed.
    assert widths["distributions/pivot"] == {6} and max(widths["fused/code"]) == 7


@pytest.mark.timeout(1800)  # Each training group takes long to start where two cores are busy.
def test_targets_that_start_from_the_sft_control_are_held_to_it_where_nobody_teaches(
    toys: Toys, finished: Recipe
) -> None:
    asked = ("targets.start=sft", "targets.controls=[sft, longer]", "merged.method={kind: rescaled_sum, reach: each}")
    recipe = load_recipe(toys.recipe_path, (f"runs={finished.runs}", *asked))
    made = [name for name, state in states(recipe).items() if state != "done"]
    assert made == [
        "distributions/sft", "targets/code", "targets/reference", "targets/conversation", "targets/longer", "merged",
        "report",
    ]  # fmt: skip
    recipe = beside(finished, toys, toys.folder / "started", *asked, stages=4, sources=1)
    made = [name for name, state in states(recipe).items() if state != "done"]
    assert made == ["distributions/sft", "targets/code", "targets/longer", "merged", "report"]
    run(recipe)
    artifacts = {str(artifact): artifact for artifact in build_graph(recipe)}
    held = read_manifest(artifacts["distributions/sft"].folder)
    fused = read_manifest(artifacts["fused/code"].folder)
    assert [shard.path for shard in held.shards] == [shard.path for shard in fused.shards_of("train")]

    def losses(name: str) -> list[float]:
        lines = Path(artifacts[f"targets/{name}"].folder, "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["gold"] for line in lines]

    assert losses("longer")[0] < losses("sft")[0], "it goes on where the control has ended"
    assert losses("longer")[0] == pytest.approx(losses("code")[0], rel=1e-5), "as the target does"
    facts = read_manifest(artifacts["targets/code"].folder).facts
    assert 0 < facts["anchored_tokens"] < facts["answer_tokens"]
    report = json.loads(Path(recipe.folder, "6_report", "report.json").read_text())
    assert {"sft", "longer", "target:code", "merged"} <= set(report["bits_per_byte"])
    assert "source:sft" not in report["bits_per_byte"]


@pytest.mark.timeout(1800)  # Each training group takes long to start where two cores are busy.
def test_rounds_train_one_after_another_and_each_goes_on_from_what_the_one_before_was_merged_into(
    toys: Toys, finished: Recipe
) -> None:
    asked = ("targets.start=sft", "targets.rounds=2", "merged.method={kind: rescaled_sum, reach: each}")
    recipe = beside(finished, toys, toys.folder / "rounds", *asked, stages=2, sources=2)
    sources = ("code", "reference")
    names = [str(artifact) for artifact in build_graph(recipe)]
    assert names[names.index("targets/sft") :] == [
        "targets/sft", "distributions/sft", *(f"targets/round-1/{name}" for name in sources), "merged/round-1",
        "distributions/round-1", *(f"targets/{name}" for name in sources), "merged", "report",
    ]  # fmt: skip
    run(recipe, until="distributions")
    assert {name for name, state in states(recipe).items() if state == "done"} == {
        "corpus", "distributions/pivot", *(f"distributions/{name}" for name in sources),
    }  # fmt: skip
    run(recipe, until="targets")
    assert [name for name, state in states(recipe).items() if state != "done"] == ["merged", "report"]
    run(recipe)
    artifacts = {str(artifact): artifact for artifact in build_graph(recipe)}
    steps = {}
    for name in ("targets/round-1/code", "targets/code"):
        lines = Path(artifacts[name].folder, "metrics.jsonl").read_text().splitlines()
        steps[name] = [json.loads(line)["step"] for line in lines]
    joined = [step for part in steps.values() for step in part]
    assert joined == list(range(1, len(joined) + 1))
    between = Path(recipe.folder, "4_targets", "round-1", "merged")
    assert artifacts["merged/round-1"].folder.endswith("4_targets/round-1/merged")
    assert json.loads((between / "config.json").read_text())["dtype"] == "float32"
    report = json.loads(Path(recipe.folder, "6_report", "report.json").read_text())
    assert {name for name in report["bits_per_byte"] if name.startswith("target:")} == {f"target:{n}" for n in sources}
    assert [point["step"] for point in report["training"]["code"]] == joined


def test_a_model_of_a_late_round_is_scored_as_any_other(toys: Toys, tmp_path: Path) -> None:
    recipe = load_recipe(toys.recipe_path, (f"runs={tmp_path}",))
    run(recipe, until="corpus")
    artifact = much_behind(next(made for made in build_graph(recipe) if str(made) == "distributions/pivot"))
    build_distributions(recipe, [artifact], silent)
    assert read_manifest(artifact.folder).rows == read_manifest(artifact.chats.folder).rows


def test_the_report_scores_every_model_on_anchored_out_chats(finished: Recipe) -> None:
    report = json.loads(Path(finished.folder, "6_report", "report.json").read_text())
    scores = report["bits_per_byte"]
    models = {"pivot", "sft", "merged"} | {
        f"{kind}:{s.name}" for kind in ("source", "target") for s in finished.sources
    }
    assert models <= set(scores)
    for model in models:
        assert set(scores[model]) == {"code", "reference", "conversation", "overall"}
        assert all(0.1 < value < 20 for value in scores[model].values())
    assert scores["sft"]["overall"] < scores["pivot"]["overall"]


def test_the_merged_folder_loads_in_transformers_and_generates(finished: Recipe) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(finished.folder, "5_merged")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert output.shape[1] > prompt["input_ids"].shape[1]
    for name in ("config.json", "generation_config.json", "tokenizer.json", "README.md", "weights.json"):
        assert (folder / name).is_file()


def test_one_more_source_leaves_all_other_targets_as_they_are(finished: Recipe, toys: Toys) -> None:
    data = finished.model_dump(mode="json")
    data["sources"].append({"name": "second", "model": data["sources"][0]["model"]})
    path = toys.folder / "more.json"
    path.write_text(json.dumps(data))
    todo = {name for name, state in states(load_recipe(path)).items() if state != "done"}
    assert todo == {"distributions/second", "fused/second", "targets/second", "merged", "report"}


def test_a_changed_setting_makes_stale_what_depends_on_it_and_says_why(toys: Toys, finished: Recipe) -> None:
    changed = load_recipe(toys.recipe_path, (f"runs={finished.runs}", "targets.learning_rate=0.002"))
    stale = {str(status.artifact): status.why for status in list_statuses(changed) if status.state == "stale"}
    assert stale["targets/sft"] == "learning_rate was 0.001, is 0.002"
    assert set(stale) == {
        "targets/code",
        "targets/reference",
        "targets/conversation",
        "targets/sft",
        "merged",
        "report",
    }


@pytest.mark.parametrize(
    "change", ["lambda_=0.9", "lambda_end=0.1", "divergence=kl", "tail=renormalise", "temperature=2"]
)
def test_what_teachers_are_asked_for_has_no_say_in_the_sft_control(toys: Toys, finished: Recipe, change: str) -> None:
    changed = load_recipe(toys.recipe_path, (f"runs={finished.runs}", f"targets.{change}"))
    stale = {name for name, state in states(changed).items() if state != "done"}
    assert stale == {"targets/code", "targets/reference", "targets/conversation", "merged", "report"}


def test_more_actors_make_nothing_stale(toys: Toys, finished: Recipe) -> None:
    changed = load_recipe(
        toys.recipe_path, (f"runs={finished.runs}", "distributions.actors.max=4", "targets.retries=1")
    )
    assert set(states(changed).values()) == {"done"}


def test_a_run_killed_in_every_stage_ends_with_the_same_bytes(toys: Toys, finished: Recipe, tmp_path: Path) -> None:
    undisturbed = beside(finished, toys, tmp_path / "undisturbed", stages=4, sources=1)
    assert {name for name, state in states(undisturbed).items() if state != "done"} == {"merged", "report"}
    run(undisturbed)
    path = tmp_path / "one.json"
    path.write_text(undisturbed.model_dump_json())
    command = [sys.executable, "-m", "fusion_ray", "run", str(path), "--set", f"runs={tmp_path / 'killed'}"]
    ray.shutdown()
    for stage in dict.fromkeys(artifact.stage for artifact in build_graph(undisturbed)):
        assert _kill_in(stage, command), f"the run ended before stage {stage} could be killed"
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    killed, expected = _content(tmp_path / "killed" / finished.name), _content(Path(undisturbed.folder))
    left = {name: content for name, content in expected.items() if name in killed}
    assert killed == left
    # What was copied beside: the other two sources, and nothing of the one that was trained.
    assert all(
        any(other in name for other in ("reference", "conversation")) for name in expected.keys() - killed.keys()
    )
    assert len(killed) > 12


def _kill_in(stage: str, command: list[str]) -> bool:
    """Start the run, and kill -9 it with all its processes once it reports from the stage; False if it never did."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, bufsize=1)
    assert process.stdout is not None
    reached = any(line.split("s  ", 1)[-1].startswith(stage) and "done before" not in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return reached


def _content(run: Path) -> dict[str, bytes]:
    files = sorted(path for pattern in _CONTENT for path in run.rglob(pattern))
    return {str(path.relative_to(run)): path.read_bytes() for path in files}
