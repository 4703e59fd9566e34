"""The training loop in one process: it learns, repeats, resumes, stops on NaN, and exports what it trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys.fused import toy_fused
from toys.models import byte_level_tokenizer, save_toy
from toys.training import KeptCheckpoints, anchored_rows, rows, same, settings, weights
from transformers import AutoModelForCausalLM

from fusion_ray.errors import NonFiniteError, RecipeError
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.targets.export import export_model
from fusion_ray.targets.rows import TrainingRows
from fusion_ray.targets.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def pivot(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("pivot"), "llama", byte_level_tokenizer(300), extra_rows=0)


def test_training_lowers_the_loss_and_measures_bits_per_byte(pivot: str) -> None:
    trainer = Trainer(pivot, settings(), seed=0)
    seen = []
    history = trainer.fit(rows(), rows(seed=1), report=seen.append)
    assert seen == history
    assert [line.step for line in history] == list(range(1, history[0].total + 1))
    assert history[-1].loss < 0.9 * history[0].loss
    measured = [line.bits_per_byte for line in history if line.bits_per_byte is not None]
    assert len(measured) == 2, "once an epoch"
    assert measured[1] < measured[0]
    middle = history[1]
    assert middle.gold > 0 and middle.soft > 0 and middle.gradient_norm > 0
    assert sum(line.tokens for line in history) == 2 * rows().lengths_N.sum()


def test_the_first_loss_is_the_mean_over_the_step_however_it_is_cut(pivot: str) -> None:
    first = [Trainer(pivot, settings(tokens_per_batch=size), seed=0).fit(rows())[0] for size in (64, 256)]
    assert first[0].loss == pytest.approx(first[1].loss, rel=1e-5)
    assert first[0].gradient_norm == pytest.approx(first[1].gradient_norm, rel=1e-4)


def test_the_same_seed_gives_the_same_weights(pivot: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(pivot, settings(epochs=1), seed=seed)
        trainer.fit(rows())
        runs.append(weights(trainer))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_parts_of_a_training_are_its_updates_with_its_learning_rates(pivot: str) -> None:
    whole = Trainer(pivot, settings(), seed=0).fit(rows())
    parts = [Trainer(pivot, settings(), seed=0).fit(rows(), part=(number, 3)) for number in (1, 2, 3)]
    joined = [line for part in parts for line in part]
    for name in ("step", "total", "epoch", "learning_rate", "tokens"):
        assert [getattr(line, name) for line in joined] == [getattr(line, name) for line in whole]
    assert joined[0].loss == whole[0].loss
    assert joined[len(parts[0])].gold > parts[0][-1].gold, "each part starts from the model it is given"


def test_a_part_goes_on_from_its_own_checkpoint(pivot: str, tmp_path: Path) -> None:
    whole = Trainer(pivot, settings(), seed=0)
    history = whole.fit(rows(), save=KeptCheckpoints(tmp_path), part=(2, 2))
    first = min(int(path.name) for path in tmp_path.iterdir())
    assert history[0].step < first < history[-1].step
    resumed = Trainer(pivot, settings(), seed=0)
    again = resumed.fit(rows(), resume_from=tmp_path / str(first), part=(2, 2))
    assert [line.loss for line in again] == [line.loss for line in history]
    assert same(weights(whole), weights(resumed))


def test_more_parts_than_updates_are_refused(pivot: str) -> None:
    with pytest.raises(RecipeError, match=r"targets\.rounds is 1000, and training has \d+ updates"):
        Trainer(pivot, settings(), seed=0).fit(rows(), part=(1, 1000))


def test_a_target_that_nobody_teaches_stays_what_it_starts_as_to_the_bit(pivot: str) -> None:
    trainer = Trainer(pivot, settings(epochs=1), seed=0)
    before = weights(trainer)
    nothing = anchored_rows(chosen=-1)
    assert nothing.n_anchored == nothing.answers_N.sum() > 0
    history = trainer.fit(nothing)
    assert same(before, weights(trainer))
    assert history[0].soft > 0 and history[0].loss == pytest.approx(history[0].soft)


@pytest.mark.parametrize("stage, dtype", [(0, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "float32")])
def test_a_resumed_run_ends_with_the_very_weights_of_an_undisturbed_one(
    pivot: str, tmp_path: Path, stage: int, dtype: str
) -> None:
    how = settings(zero_stage=stage, dtype=dtype, epochs=1)
    shelf = KeptCheckpoints(tmp_path)
    undisturbed = Trainer(pivot, how, seed=0)
    history = undisturbed.fit(rows(), save=shelf)
    assert shelf.steps[0] == 2
    resumed = Trainer(pivot, how, seed=0)
    again = resumed.fit(rows(), resume_from=tmp_path / "2")
    assert same(weights(undisturbed), weights(resumed))
    assert [line.loss for line in again] == [line.loss for line in history]


def test_a_checkpoint_of_other_settings_is_refused(pivot: str, tmp_path: Path) -> None:
    Trainer(pivot, settings(epochs=1), seed=0).fit(rows(), save=KeptCheckpoints(tmp_path))
    with pytest.raises(RecipeError, match="does not fit"):
        Trainer(pivot, settings(epochs=1, zero_stage=2), seed=0).fit(rows(), resume_from=tmp_path / "2")


def test_every_zero_stage_trains_to_the_same_loss(pivot: str) -> None:
    losses = {}
    for stage in (0, 1, 2, 3):
        losses[stage] = Trainer(pivot, settings(zero_stage=stage, epochs=1), seed=0).fit(rows())[-1].loss
    assert max(losses.values()) - min(losses.values()) < 1e-4 * losses[0]


def test_bfloat16_follows_float32(pivot: str) -> None:
    exact = Trainer(pivot, settings(epochs=1), seed=0).fit(rows())
    low = Trainer(pivot, settings(epochs=1, dtype="bfloat16", zero_stage=2), seed=0).fit(rows())
    assert low[-1].loss == pytest.approx(exact[-1].loss, rel=0.02)


def test_bfloat16_training_starts_from_the_unrounded_pivot(pivot: str) -> None:
    trainer = Trainer(pivot, settings(dtype="bfloat16", zero_stage=2), seed=0)
    on_disk = AutoModelForCausalLM.from_pretrained(pivot, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, on_disk[name]) for name, weight in trainer.engine.full_weights())


def test_gradient_checkpointing_changes_nothing(pivot: str) -> None:
    plain, frugal = (
        Trainer(pivot, settings(epochs=1, gradient_checkpointing=how), seed=0).fit(rows())[-1].loss
        for how in (False, True)
    )
    assert frugal == pytest.approx(plain, rel=1e-6)


def test_fractional_epochs_stop_in_the_middle(pivot: str) -> None:
    whole = Trainer(pivot, settings(epochs=1), seed=0).fit(rows())
    half = Trainer(pivot, settings(epochs=0.5), seed=0).fit(rows())
    assert len(half) == -(-len(whole) // 2)


def test_a_nan_stops_the_run_and_names_step_and_rows(pivot: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pivot, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"step 1: .* rows row-\d+"):
        Trainer(str(broken), settings(), seed=0).fit(rows())


def test_weights_that_explode_stop_the_run_and_keep_the_last_checkpoint(pivot: str, tmp_path: Path) -> None:
    shelf = KeptCheckpoints(tmp_path)
    how = settings(learning_rate=1e36, schedule="constant", warmup=0.9, clip=1e30, checkpoint_every_steps=1)
    with pytest.raises(NonFiniteError, match="step"):
        Trainer(pivot, how, seed=0).fit(rows(), save=shelf)
    for step in shelf.steps:
        state = load_file(tmp_path / str(step) / "worker-0.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


@pytest.mark.parametrize("stage, dtype", [(0, "float32"), (3, "bfloat16")])
def test_the_export_is_a_folder_that_transformers_opens(pivot: str, tmp_path: Path, stage: int, dtype: str) -> None:
    trainer = Trainer(pivot, settings(epochs=1, zero_stage=stage, dtype=dtype), seed=0)
    trainer.fit(rows())
    export_model(trainer.engine, pivot, tmp_path, dtype="float32", shard_gib=1e-4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert same(weights(trainer), dict(model.named_parameters()))
    assert load_tokenizer(str(tmp_path)).chat_template == byte_level_tokenizer(300).chat_template
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    pivot_names = set(load_file(Path(pivot) / "model.safetensors"))
    assert set(index["weight_map"]) == pivot_names


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    pivot = save_toy(tmp_path / "pivot", "qwen2", byte_level_tokenizer(300), extra_rows=8)
    trainer = Trainer(pivot, settings(epochs=1, zero_stage=2), seed=0)
    trainer.fit(rows())
    export_model(trainer.engine, pivot, tmp_path / "target", dtype="float32")
    assert set(load_file(tmp_path / "target" / "model.safetensors")) == set(
        load_file(tmp_path / "pivot" / "model.safetensors")
    )


def test_lambda_may_move_on_a_straight_line(pivot: str) -> None:
    history = Trainer(pivot, settings(lambda_=0.0, lambda_end=1.0, epochs=1), seed=0).fit(rows())
    assert history[0].loss < history[0].gold
    assert history[-1].loss == pytest.approx(history[-1].gold, rel=1e-6)
    assert history[-1].soft == 0


def test_validation_rows_without_known_bytes_give_no_number(pivot: str) -> None:
    table = toy_fused(8, vocabulary=280).drop_columns(["n_bytes"])
    history = Trainer(pivot, settings(epochs=1), seed=0).fit(rows(), TrainingRows([table], max_length=64))
    assert history[-1].bits_per_byte is None
