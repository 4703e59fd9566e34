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


def run_group(
    folder: Path, workers: int, stages: tuple[int, ...], how: str = "whole", changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Start this file once per worker; returns each stage's losses and a digest of its weights."""
    store = folder / f"store-{uuid.uuid4().hex}"
    command = [sys.executable, "-W", "ignore", __file__, str(folder), store.as_uri(), str(workers)]
    command += [",".join(map(str, stages)), how, json.dumps(changes or {})]
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
    from toys.models import byte_level_tokenizer, save_toy

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
    resumed = run_group(folder, 2, (3,), how="resume")
    assert resumed == whole


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_trains_alike_under_every_zero_stage_and_number_of_workers(folder: Path, kind: str) -> None:
    # Without persistence ZeRO-3 parts even the smallest weight, as it does with large models.
    parted = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_model_persistence_threshold": 0}}
    changes = {"adapter": {"kind": kind, "rank": 4}, "deepspeed": parted, "learning_rate": 1e-2}
    one = run_group(folder, 1, (0,), changes=changes)["0"]["losses"]
    assert one[-1] < 0.97 * one[0]
    for stage, found in run_group(folder, 2, (2, 3), changes=changes).items():
        np.testing.assert_allclose(found["losses"], one, rtol=1e-4, err_msg=stage)


def test_under_zero_3_two_workers_load_a_part_each_and_together_the_pivot(folder: Path) -> None:
    found = run_group(folder, 2, (3,), how="load")
    assert found["parted"], "every weight was in parts as soon as it was loaded"
    assert 0.5 <= found["share_held"] < 0.6
    assert found["equals_disk"]


def work(folder: Path, workers: int, stages: list[int], resume: bool, changes: dict[str, Any]) -> dict[str, Any]:
    """What one worker does."""
    import hashlib

    from toys.fused import toy_fused
    from toys.targets import PLAIN

    from fusion_ray.recipe import Targets
    from fusion_ray.targets.rows import TrainingRows
    from fusion_ray.targets.trainer import Trainer

    rows = TrainingRows([toy_fused(24, vocabulary=280)], max_length=64)
    found = {}
    for stage in stages:
        settings = Targets.model_validate({**PLAIN, "zero_stage": stage, "tokens_per_batch": 64, **changes})
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


def load(folder: Path) -> dict[str, Any]:
    """Only load, under ZeRO-3, and look at what this worker holds and what all hold together."""
    import torch
    from safetensors.torch import load_file
    from toys.targets import PLAIN

    from fusion_ray.recipe import Targets
    from fusion_ray.targets import deepspeed

    pivot = str(folder / "pivot")
    settings = Targets.model_validate({**PLAIN, "zero_stage": 3})
    deepspeed._import_deepspeed()
    model, _ = deepspeed._load(pivot, settings, settings.deepspeed_config(), False)
    weights = list(model.parameters())
    parted = all(hasattr(weight, "ds_id") and weight.numel() == 0 for weight in weights)
    held = sum(weight.ds_tensor.numel() for weight in weights) / sum(weight.ds_numel for weight in weights)
    on_disk = load_file(Path(pivot) / "model.safetensors")
    whole = dict(deepspeed.Engine(pivot, settings).full_weights())
    equal = whole.keys() == on_disk.keys() and all(torch.equal(whole[name], on_disk[name]) for name in whole)
    return {"parted": parted, "share_held": held, "equals_disk": equal}


def main() -> None:
    import torch

    where, meeting, count, kinds, how, changes, number = sys.argv[1:]
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=int(number), world_size=int(count))
    stages = [int(stage) for stage in kinds.split(",")]
    result = (
        load(Path(where))
        if how == "load"
        else work(Path(where), int(count), stages, how == "resume", json.loads(changes))
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
