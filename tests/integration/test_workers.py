"""Several workers of a torch.distributed group on one machine: the same training, however many there are."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)


def run_group(folder: Path, workers: int, stages: tuple[int, ...], resume: bool = False) -> dict[str, Any]:
    """Start this file once per worker; returns each stage's losses and a digest of its weights."""
    store = folder / f"store-{uuid.uuid4().hex}"
    command = [sys.executable, "-W", "ignore", __file__, str(folder), store.as_uri(), str(workers)]
    command += [",".join(map(str, stages)), "resume" if resume else "whole"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    running = []
    for rank in range(workers):
        environment = {**os.environ, "PYTHONPATH": paths, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    outputs = [process.communicate(timeout=500)[0].decode() for process in running]
    assert all(process.returncode == 0 for process in running), outputs[0][-3000:]
    return dict(json.loads(outputs[0].splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toy_models import byte_level_tokenizer, save_toy

    folder = tmp_path_factory.mktemp("workers")
    save_toy(folder / "pivot", "qwen2", byte_level_tokenizer(300), extra_rows=0)
    return folder


def test_zero_stages_and_worker_counts_all_train_the_same_model(folder: Path) -> None:
    found = {(1, stage): result for stage, result in run_group(folder, 1, STAGES).items()}
    found |= {(2, stage): result for stage, result in run_group(folder, 2, STAGES).items()}
    found |= {(4, stage): result for stage, result in run_group(folder, 4, (2,)).items()}
    first = found[1, "0"]["losses"]
    assert first[-1] < 0.9 * first[0]
    for place, result in found.items():
        np.testing.assert_allclose(result["losses"], first, rtol=1e-4, err_msg=str(place))


def test_two_workers_resume_bit_for_bit(folder: Path) -> None:
    whole = run_group(folder, 2, (3,))
    resumed = run_group(folder, 2, (3,), resume=True)
    assert resumed == whole


def work(folder: Path, store: str, workers: int, stages: list[int], resume: bool, rank: int) -> dict[str, Any]:
    """What one worker does."""
    import hashlib

    import torch
    from toy_fused import toy_fused
    from toy_targets import PLAIN

    from fusion_ray.engines.trainer import Trainer
    from fusion_ray.engines.training_data import TrainingRows
    from fusion_ray.recipe import Targets

    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    rows = TrainingRows([toy_fused(24, vocabulary=280)], max_length=64)
    found = {}
    for stage in stages:
        settings = Targets.model_validate({**PLAIN, "zero_stage": stage, "tokens_per_batch": 64})
        shelf = folder / f"shelf-{workers}-{stage}"
        trainer = Trainer(str(folder / "pivot"), settings, seed=0)

        def save(part: Path, step: int, shelf: Path = shelf) -> None:
            shutil.copytree(part, shelf / str(step), dirs_exist_ok=True)

        checkpoint = shelf / "2" if resume else None
        history = trainer.fit(rows, save=None if resume else save, resume_from=checkpoint)
        digest = hashlib.sha256()
        for _, weight in trainer.engine.full_weights():
            digest.update(weight.numpy().tobytes())
        found[str(stage)] = {"losses": [line.loss for line in history], "weights": digest.hexdigest()}
    return found


if __name__ == "__main__":
    where, meeting, count, kinds, how, number = sys.argv[1:]
    result = work(Path(where), meeting, int(count), [int(s) for s in kinds.split(",")], how == "resume", int(number))
    print(json.dumps(result))
