"""vLLM gives what Transformers gives, in float32, on several architectures."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import toys.models as toy_models
from toys.models import FLOAT32
from toys.run import make_recipe

from fusion_ray.models.scorer import DrawSettings
from fusion_ray.models.transformers import TransformersGenerator, TransformersScorer
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.run import run
from fusion_ray.recipe import Evaluate
from fusion_ray.report.harness import run_harness
from fusion_ray.storage.artifacts import read_manifest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

LENGTHS = (40, 3, 90, 17, 255, 256, 2, 30)


def run_session(tmp_path: Path, architectures: tuple[str, ...]):
    """Random rows scored by both engines: the vLLM session's results, and ours for each model and row."""
    tokenizer = toy_models.byte_level_tokenizer()
    folders = [toy_models.save_toy(tmp_path / name, name, tokenizer) for name in architectures]
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(tokenizer), length).astype(np.int32) for length in LENGTHS]
    positions = [np.arange(1, len(row)) for row in rows]
    positions[1], positions[-1] = positions[1][:0], positions[-1][4:20:3]
    request = {f"row{i}": row for i, row in enumerate(rows)} | {f"at{i}": at for i, at in enumerate(positions)}
    np.savez(tmp_path / "request.npz", **request)
    script = Path(toy_models.__file__).with_name("vllm_session.py")
    command = [sys.executable, str(script), str(tmp_path / "request.npz"), str(tmp_path / "result.npz"), *folders]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    ours = [TransformersScorer(folder, 8, FLOAT32).score(rows, positions) for folder in folders]
    theirs = np.load(tmp_path / "result.npz")
    drawing = TransformersScorer(folders[0], 4, FLOAT32, sampling=DrawSettings(8, seed=3))
    assert_drawn_alike(theirs, drawing.score(rows, positions))
    return theirs, ours


def assert_drawn_alike(theirs, ours) -> None:
    """The same draws, but where one lies on an edge."""
    ids, logprobs = (
        np.concatenate([theirs[f"drawn_{name}_{i}"] for i in range(len(ours))]) for name in ("ids", "logprobs")
    )
    same = (ids == np.concatenate([row.ids_TK for row in ours])).all(axis=1)
    assert len(same) > 400 and same.mean() > 0.98
    np.testing.assert_allclose(logprobs[same], np.concatenate([row.logprobs_TK for row in ours])[same], atol=1e-3)


def assert_same(theirs, ours) -> None:
    """Log-probabilities to 1e-4, the same ids up to ties."""
    for m, model in enumerate(ours):
        for i, row in enumerate(model):
            np.testing.assert_allclose(theirs[f"logprobs_{m}_{i}"], row.logprobs_TK, atol=1e-4)
            np.testing.assert_allclose(theirs[f"real_{m}_{i}"], row.real_logprobs_T, atol=1e-4)
            other = theirs[f"ids_{m}_{i}"] != row.ids_TK
            beside = np.minimum(
                np.abs(np.diff(row.logprobs_TK, axis=1, prepend=np.inf)),
                np.abs(np.diff(row.logprobs_TK, axis=1, append=-np.inf)),
            )
            assert (beside[:, :-1][other[:, :-1]] < 1e-4).all()


def test_vllm_equals_transformers_on_llama(tmp_path):
    theirs, ours = run_session(tmp_path, ("llama",))
    assert_same(theirs, ours)
    assert bool(theirs["repeats"])
    assert "EngineError: sequence 0: 257 tokens, and the model reads at most 256" in str(theirs["too_long"])
    assert "EngineError" in str(theirs["dead"]) and "vLLM failed" in str(theirs["dead"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lm_eval and datasets warn of each other.
def test_vllm_scores_and_writes_as_transformers_on_qwen2_gpt_neox_and_gemma2(tmp_path):
    theirs, ours = run_session(tmp_path, ("qwen2", "gpt_neox", "gemma2"))
    assert_same(theirs, ours)
    rows, folder = np.load(tmp_path / "request.npz"), str(tmp_path / "qwen2")
    prompts = [rows[f"row{i}"] for i in range(4)]
    written = TransformersGenerator(folder, engine=FLOAT32).generate(prompts, max_tokens=12, end_ids=[2])
    assert theirs["written"].tolist() == written and any(written)
    assert bool(theirs["same"]) and theirs["never"].all() and theirs["ended"].any()
    task = {"kind": "gold_answer", "name": "gold", "path": str(tmp_path / "qwen2" / "gold.jsonl")}
    found = run_harness(folder, FLOAT32, Evaluate.model_validate({"tasks": [task]}))
    assert float(theirs["gold"]) == pytest.approx(found["gold"]["metrics"]["bits_per_byte"], rel=1e-4)


def test_the_stages_score_and_answer_with_vllm_in_ray_s_actors(tmp_path):
    distributions = {"top_k": 4, "engine": {"kind": "vllm", "dtype": "float32"}, "max_length": 200}
    recipe = make_recipe(tmp_path, 20, distributions=distributions, answers={"max_tokens": 40})
    run(recipe, until="answers")
    ray.shutdown()
    made = {str(artifact): read_manifest(artifact.folder) for artifact in build_graph(recipe)[:6]}
    assert made["distributions/math"].rows == 20
    counts = made["answers/math"].facts["answers"]
    assert counts["asked"] == made["answers/math"].rows + counts["empty"] + counts["unaskable"]
    assert made["distributions/answers/math/math"].rows == made["distributions/answers/math/pivot"].rows
    assert made["answers/math"].rows == made["distributions/answers/math/math"].rows
