"""DeepSpeed itself: what the recipe may pass it is known to it, reaches it, and offloading changes no weight."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys.models import byte_level_tokenizer, save_toy
from toys.training import KeptCheckpoints, rows, same, settings, weights

from fusion_ray.recipe.deepspeed import OFFLOAD_KEYS, ZERO_KEYS
from fusion_ray.targets.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float(torch.sum((one[name] - other[name]) ** 2)) for name in one) ** 0.5


@pytest.fixture(scope="module")
def pivot(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("pivot"), "qwen2", byte_level_tokenizer(300), extra_rows=0)


def test_every_key_that_passes_is_one_that_the_installed_deepspeed_knows() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert known >= ZERO_KEYS
    offload = {*DeepSpeedZeroOffloadParamConfig.model_fields, *DeepSpeedZeroOffloadOptimizerConfig.model_fields}
    assert offload >= OFFLOAD_KEYS


@pytest.mark.parametrize("stage, parameters", [(1, False), (2, False), (3, False), (3, True)])
def test_offloading_changes_where_state_lies_and_not_the_weights(
    pivot: str, tmp_path: Path, stage: int, parameters: bool
) -> None:
    plain = Trainer(pivot, settings(epochs=1, zero_stage=stage), seed=0)
    before = weights(plain)
    plain.fit(rows())
    how = settings(epochs=1, zero_stage=stage, offload={"optimizer": True, "parameters": parameters})
    offloaded = Trainer(pivot, how, seed=0)
    offloaded.fit(rows(), save=KeptCheckpoints(tmp_path))
    # Over all weights: a key's bias moves by rounding alone, as attention does not depend on it.
    assert distance(weights(offloaded), weights(plain)) < 1e-5 * distance(before, weights(plain))
    resumed = Trainer(pivot, how, seed=0)
    resumed.fit(rows(), resume_from=tmp_path / "2")
    assert same(weights(offloaded), weights(resumed))


def test_a_file_s_keys_reach_deepspeed(pivot: str) -> None:
    options = {"zero_optimization": {"sub_group_size": 5000, "stage3_param_persistence_threshold": 0}}
    trainer = Trainer(pivot, settings(epochs=1, zero_stage=3, deepspeed=options), seed=0)
    plain = Trainer(pivot, settings(epochs=1, zero_stage=3), seed=0)
    assert trainer.engine.core.zero_sub_group_size() == 5000
    assert trainer.fit(rows())[-1].loss == pytest.approx(plain.fit(rows())[-1].loss, rel=1e-5)


def test_training_loads_mlflow_only_where_it_tracks() -> None:
    code = """
import sys
from fusion_ray.targets.deepspeed import _import_deepspeed
_import_deepspeed()
assert "mlflow" not in sys.modules
import mlflow
_import_deepspeed()
assert sys.modules["mlflow"] is mlflow
"""
    subprocess.run([sys.executable, "-c", code], check=True)
