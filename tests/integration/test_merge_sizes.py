"""A model of some size: the same bytes from one task and from eight, and from files of 50 MB and of 5 GB."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.merged.execute import finish_weights, merge_to_folder, write_file
from fusion_ray.merged.plan import MergePlan, plan_merge
from fusion_ray.merged.variation import join_squares, measure_file, plan_measuring, resolve_weights
from fusion_ray.storage.checkpoints import TensorReader, open_checkpoint

pytestmark = pytest.mark.slow


def merge_in_eight_tasks(plan: MergePlan, folder: str) -> None:
    """What the stage does with Ray, in eight processes at once."""
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        works = plan_measuring(plan, {})
        measured = list(pool.map(measure_file, [plan] * len(works), works))
        plan = resolve_weights(plan, join_squares(measured))
        records = list(pool.map(write_file, [plan] * len(plan.files), plan.files, [folder] * len(plan.files)))
    finish_weights(records, folder)


@pytest.mark.timeout(900)
def test_one_task_and_eight_and_small_files_and_large_ones_hold_the_same_bytes(tmp_path: Path) -> None:
    pivot = toy_tensors(layers=8, hidden=1024, vocab=16000)
    folders = {name: save_toy(tmp_path / name, moved(pivot, seed)) for seed, name in enumerate(("math", "code"))}
    base = open_checkpoint(save_toy(tmp_path / "pivot", pivot))
    targets = {name: open_checkpoint(folder) for name, folder in folders.items()}
    plans = {
        size: plan_merge(base, targets, method="varm", parameters={"granularity": "layer"}, file_bytes=size)
        for size in (50_000_000, 5_000_000_000)
    }
    small, large = plans.values()
    assert len(small.files) >= 5
    assert len(large.files) == 1
    merge_to_folder(small, str(tmp_path / "one"))
    merge_in_eight_tasks(small, str(tmp_path / "eight"))
    merge_to_folder(large, str(tmp_path / "whole"), threads=8)
    for file in small.files:
        assert (tmp_path / "eight" / file.name).read_bytes() == (tmp_path / "one" / file.name).read_bytes()
    cut, whole = (open_checkpoint(str(tmp_path / name)).tensors for name in ("one", "whole"))
    assert cut.keys() == whole.keys()
    with TensorReader() as reader:
        for name, tensor in cut.items():
            assert bytes(reader.read_raw(tensor)) == bytes(reader.read_raw(whole[name])), name
