"""The stage report over a run of tiny real models."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from toys.run import HOSTILE, make_run

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.run import run as run_recipe
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.recipe import Recipe
from fusion_ray.report.reading import RunReport
from fusion_ray.storage.artifacts import read_manifest
from fusion_ray.storage.shards import read_shard

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_run(tmp_path_factory.mktemp("run"))
    run_recipe(recipe)
    return recipe


def test_every_model_of_the_run_has_a_score_in_every_domain(run: Recipe) -> None:
    report = RunReport.read(run.folder).content
    assert list(report["bits_per_byte"]) == ["pivot", "source:math", "sft", "target:math", "merged"]
    for by_domain in report["bits_per_byte"].values():
        assert by_domain.keys() == {"<b>sums</b>", "code", "overall"}
        assert by_domain["overall"] == pytest.approx((by_domain["<b>sums</b>"] + by_domain["code"]) / 2)


def test_the_pivots_score_is_the_one_its_distributions_shards_say(run: Recipe) -> None:
    artifacts = {str(artifact): artifact for artifact in build_graph(run)}
    scored = artifacts["distributions/pivot"]
    tables = [read_shard(scored.folder, shard) for shard in read_manifest(scored.folder).shards_of("heldout")]
    nats = -sum(value for table in tables for row in table["real_logprobs"].to_pylist() for value in row)
    n_bytes = sum(sum(table["n_bytes"].to_pylist()) for table in tables)
    report = RunReport.read(run.folder).content
    assert report["heldout"]["bytes"] == n_bytes
    assert report["bits_per_byte_micro"]["pivot"] == pytest.approx(nats / 0.6931471805599453 / n_bytes)


def test_every_artifact_that_ray_made_says_its_peak_memory(run: Recipe) -> None:
    made = [
        stage for stage in RunReport.read(run.folder).content["stages"] if stage["stage"] in ("corpus", "distributions")
    ]
    assert len(made) == 3
    for stage in made:
        assert 50 << 20 < stage["peak_bytes"]["worker"] < 8 << 30
        assert 50 << 20 < stage["peak_bytes"]["driver"] < 8 << 30


def test_the_report_counts_itself_as_far_as_its_files(run: Recipe) -> None:
    report = RunReport.read(run.folder).content
    last = report["stages"][-1]
    finished = read_manifest(f"{run.folder}/6_report")
    assert last["stage"] == "report"
    assert 0 < last["seconds"] < finished.seconds
    assert last["rows"] == report["heldout"]["documents"]
    assert last["peak_bytes"] == finished.peak_bytes
    assert last["peak_bytes"]["worker"] > 50 << 20


def test_samples_hold_an_answer_of_every_model_made_from_the_pivot(run: Recipe) -> None:
    samples = RunReport.read(run.folder).content["samples"]
    assert len(samples) == run.report.samples
    assert all(sample["answers"].keys() == {"pivot", "sft", "target:math", "merged"} for sample in samples)
    assert {sample["domain"] for sample in samples} == {"<b>sums</b>", "code"}


def test_the_views_tokens_join_to_the_answers_and_nothing_is_lost_in_projection(run: Recipe) -> None:
    views = RunReport.read(run.folder).content["views"]
    assert len(views) == run.report.views
    for view in views:
        for group in view["groups"]:
            if all("projected_real" in token for token in group["pivot"]) and group["source"]:
                source = math.prod(token["real"] for token in group["source"])
                assert math.prod(token["projected_real"] for token in group["pivot"]) >= source * (1 - 1e-3)


def test_the_merged_models_card_has_the_scores_and_its_manifest_the_cards_hash(run: Recipe) -> None:
    merged = Path(run.folder) / "5_merged"
    card = (merged / "README.md").read_bytes()
    assert b"| merged |" in card
    assert read_manifest(str(merged)).files["README.md"] == hashlib.sha256(card).hexdigest()
    assert all(status.state == "done" for status in list_statuses(run))


def test_text_of_the_corpus_cannot_run_in_the_page(run: Recipe) -> None:
    page = (Path(run.folder) / "6_report" / "report.html").read_text()
    assert "<b>sums</b>" not in page
    assert HOSTILE[:20] not in page
    assert "Content-Security-Policy" in page


def test_scores_that_are_on_disk_are_not_computed_again(run: Recipe) -> None:
    folder = Path(run.folder) / "6_report"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("scores/**/*.parquet")}
    report = json.loads((folder / "report.json").read_text())
    (folder / "MANIFEST.json").unlink()
    run_recipe(run)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("scores/**/*.parquet")}
    assert json.loads((folder / "report.json").read_text())["bits_per_byte"] == report["bits_per_byte"]
