"""Runs that end with their best weights, and runs that end early."""

from pathlib import Path

import pytest
from toys.fused import toy_fused
from toys.models import byte_level_tokenizer, save_toy
from toys.training import KeptCheckpoints, rows, same, settings, weights

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Targets
from fusion_ray.targets.rows import TrainingRows
from fusion_ray.targets.trainer import Trainer
from fusion_ray.targets.validation import Validation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def pivot(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("pivot"), "llama", byte_level_tokenizer(300), extra_rows=0)


def overfitting(**changes: object) -> Targets:
    """Learns few rows by heart, so that the validation rows get worse again."""
    return settings(
        **{
            "epochs": 16,
            "learning_rate": 1e-2,
            "lambda_": 0.8,
            "schedule": "constant",
            "measure_every_steps": 2,
            "checkpoint_every_steps": 10,
            **changes,
        }
    )


def few_rows() -> TrainingRows:
    return TrainingRows([toy_fused(6, vocabulary=280)], max_length=64)


def curve(trainer: Trainer) -> dict[int, float]:
    return {line.step: line.bits_per_byte for line in trainer.history if line.bits_per_byte is not None}


@pytest.mark.parametrize("stage, dtype", [(0, "float32"), (2, "bfloat16"), (3, "float32")])
def test_keep_best_ends_with_the_weights_of_the_lowest_bits_per_byte(pivot: str, stage: int, dtype: str) -> None:
    trainer = Trainer(pivot, overfitting(keep="best", zero_stage=stage, dtype=dtype), seed=0)
    trainer.fit(few_rows(), rows(seed=1))
    measured = curve(trainer)
    best = min(measured, key=lambda step: measured[step])
    assert 0 < best < trainer.history[-1].step, "the curve falls and rises"
    assert trainer.kept_step == best
    assert trainer.measure(Validation(rows(seed=1))) == measured[best]


def test_keep_last_ends_with_the_last_weights(pivot: str) -> None:
    trainer = Trainer(pivot, overfitting(), seed=0)
    trainer.fit(few_rows(), rows(seed=1))
    measured = curve(trainer)
    assert trainer.kept_step == trainer.history[-1].step == max(measured)
    assert trainer.measure(Validation(rows(seed=1))) == measured[trainer.kept_step]
    assert measured[trainer.kept_step] > min(measured.values())


def test_an_early_stop_ends_the_run_after_so_many_measurements_without_gain(pivot: str) -> None:
    whole = Trainer(pivot, overfitting(), seed=0)
    whole.fit(few_rows(), rows(seed=1))
    short = Trainer(pivot, overfitting(early_stop={"patience": 2}), seed=0)
    short.fit(few_rows(), rows(seed=1))
    measured = curve(short)
    assert measured == {step: value for step, value in curve(whole).items() if step <= short.history[-1].step}
    best = min(measured, key=lambda step: measured[step])
    assert list(measured)[-3:] == [best, best + 2, best + 4]
    assert short.history[-1].step < short.history[-1].total


def test_a_run_that_goes_on_from_a_checkpoint_stops_and_keeps_alike(pivot: str, tmp_path: Path) -> None:
    how = overfitting(keep="best", early_stop={"patience": 3}, checkpoint_every_steps=2)
    shelf = KeptCheckpoints(tmp_path)
    undisturbed = Trainer(pivot, how, seed=0)
    undisturbed.fit(few_rows(), rows(seed=1), save=shelf)
    for step in (undisturbed.kept_step, undisturbed.kept_step + 2, undisturbed.history[-1].step):
        resumed = Trainer(pivot, how, seed=0)
        resumed.fit(few_rows(), rows(seed=1), resume_from=tmp_path / str(step))
        assert same(weights(resumed), weights(undisturbed)), step
        assert resumed.kept_step == undisturbed.kept_step
        assert len(resumed.history) == len(undisturbed.history)


@pytest.mark.parametrize("wish", [{"keep": "best"}, {"early_stop": {"patience": 1}}])
def test_judging_without_validation_rows_is_refused(pivot: str, wish: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"targets\.(keep: best|early_stop) judges on validation rows"):
        Trainer(pivot, settings(**wish), seed=0).fit(rows())
