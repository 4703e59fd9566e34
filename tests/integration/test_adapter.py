"""Training with LoRA and DoRA: the loss sees them, checkpoints hold them, the export has them merged in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys.models import byte_level_tokenizer, save_toy
from toys.training import KeptCheckpoints, rows, same, settings, weights

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Adapter, Targets
from fusion_ray.targets.export import export_model
from fusion_ray.targets.trainer import Trainer
from fusion_ray.targets.validation import Validation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
STAGES = [(0, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "float32"), (3, "bfloat16")]


@pytest.fixture(scope="module")
def pivot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tied embeddings, so that the frozen head is the frozen embedding."""
    return save_toy(tmp_path_factory.mktemp("pivot"), "qwen2", byte_level_tokenizer(300), extra_rows=8)


def adapted(kind: str, **changes: object) -> Targets:
    adapter = {"kind": kind, "rank": 4, "alpha": 8}
    return settings(**{"epochs": 1, "learning_rate": 1e-2, "adapter": adapter, **changes})


def on_disk(pivot: str) -> dict[str, torch.Tensor]:
    return {name: weight.float() for name, weight in load_file(Path(pivot) / "model.safetensors").items()}


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("stage, dtype", STAGES)
def test_an_untrained_adapter_leaves_the_pivot_as_it_is_on_disk(pivot: str, kind: str, stage: int, dtype: str) -> None:
    trainer = Trainer(pivot, adapted(kind, zero_stage=stage, dtype=dtype), seed=0)
    merged, expected = weights(trainer), on_disk(pivot)
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("stage, dtype", STAGES)
def test_the_export_computes_what_the_adapted_model_computed(
    pivot: str, tmp_path: Path, kind: str, stage: int, dtype: str
) -> None:
    trainer = Trainer(pivot, adapted(kind, zero_stage=stage, dtype=dtype), seed=0)
    history = trainer.fit(rows())
    assert history[-1].loss < 0.97 * history[0].loss
    export_model(trainer.engine, pivot, tmp_path, dtype="float32")
    exported, before = load_file(tmp_path / "model.safetensors"), on_disk(pivot)
    assert {name: weight.shape for name, weight in exported.items()} == {n: w.shape for n, w in before.items()}
    changed = {name for name, weight in exported.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}, "linear layers, and nothing else"
    plain = Trainer(str(tmp_path), settings(), seed=0)
    adapted_bits, plain_bits = (t.measure(Validation(rows(seed=1))) for t in (trainer, plain))
    assert plain_bits == pytest.approx(adapted_bits, rel=1e-4 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_every_zero_stage_trains_the_same_adapter(pivot: str, kind: str) -> None:
    losses = [Trainer(pivot, adapted(kind, zero_stage=stage), seed=0).fit(rows())[-1].loss for stage in (0, 1, 2, 3)]
    assert max(losses) - min(losses) < 1e-4 * losses[0]


@pytest.mark.parametrize("stage, dtype", [(0, "float32"), (2, "bfloat16"), (3, "float32")])
def test_a_resumed_adapter_ends_with_the_very_weights_of_an_undisturbed_one(
    pivot: str, tmp_path: Path, stage: int, dtype: str
) -> None:
    how = adapted("dora", zero_stage=stage, dtype=dtype)
    how = how.model_copy(update={"adapter": Adapter(kind="dora", rank=4, dropout=0.2)})
    undisturbed = Trainer(pivot, how, seed=0)
    history = undisturbed.fit(rows(), save=KeptCheckpoints(tmp_path))
    resumed = Trainer(pivot, how, seed=0)
    assert resumed.fit(rows(), resume_from=tmp_path / "2")[-1].loss == history[-1].loss
    assert same(weights(undisturbed), weights(resumed))
    saved = load_file(tmp_path / "2" / "worker-0.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) < 0.5 * sum(w.numel() for w in on_disk(pivot).values())


def test_the_head_s_own_gradient_is_not_computed_when_it_is_frozen(pivot: str) -> None:
    trainer = Trainer(pivot, adapted("lora"), seed=0)
    trainer.fit(rows())
    assert all(weight.grad is None for weight in trainer.engine.student.parameters() if not weight.requires_grad)


@pytest.mark.parametrize("modules", [["nothing_here"], ["lm_head"], ["embed_tokens", "q_proj"]])
def test_modules_that_cannot_be_adapted_are_refused_with_the_names_of_those_that_can(
    pivot: str, modules: list[str]
) -> None:
    wrong = adapted("lora", adapter={"modules": modules})
    with pytest.raises(RecipeError, match=r"targets\.adapter\.modules.*down_proj.*q_proj"):
        Trainer(pivot, wrong, seed=0)
