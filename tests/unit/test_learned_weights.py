"""Learned weights: slopes against plain autograd, steps within the bounds, and a choice that is never worse."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_fused import toy_fused
from toy_models import byte_level_tokenizer, save_toy
from transformers import AutoModelForCausalLM

from fusion_ray.algorithms.fuse.naive import naive_fusion_loss
from fusion_ray.algorithms.fuse.packing import Batch
from fusion_ray.algorithms.merge.blocks import ArrayTensor, gather
from fusion_ray.algorithms.merge.learned import Descent, merge_learned, project, with_pivot
from fusion_ray.algorithms.merge.naive import naive_linear, naive_project
from fusion_ray.engines import learned_weights, mixture
from fusion_ray.engines.learned_weights import best_point, learn_weights
from fusion_ray.engines.mixture import Mixture
from fusion_ray.engines.trainer import Trainer
from fusion_ray.engines.training_data import TrainingRows, make_batch
from fusion_ray.errors import CorruptArtifactError, EngineError, NonFiniteError, RecipeError
from fusion_ray.merge_methods import Learned
from fusion_ray.storage.checkpoints import StoredTensor, open_checkpoint
from fusion_ray.training import Targets

SETTINGS = Targets(
    dtype="float32", zero_stage=0, lambda_=0.5, max_length=64, tokens_per_step=256, tokens_per_batch=128,
    learning_rate=3e-3, epochs=2,
)  # fmt: skip
VOCABULARY = 280


@dataclass
class Family:
    """A pivot and its targets on disk."""

    pivot: str
    tensors: dict[str, tuple[StoredTensor, ...]]

    def whole(self) -> dict[str, list[torch.Tensor]]:
        """Every tensor in every model, the pivot first."""
        folders = [self.pivot, *(Path(self.pivot).parent / name for name in ("trained", "noise"))]
        states = [dict(AutoModelForCausalLM.from_pretrained(folder).double().named_parameters()) for folder in folders]
        return {name: [state[name].detach() for state in states] for name in self.tensors}


def rows_of(seed: int, n: int = 16) -> TrainingRows:
    return TrainingRows([toy_fused(n, vocabulary=VOCABULARY, seed=seed)], max_length=64)


def make_family(folder: Path, **changes: object) -> Family:
    """One target is the pivot trained on the toy task, the other the pivot with noise."""
    pivot = save_toy(folder / "pivot", "llama", byte_level_tokenizer(300), extra_rows=0, **changes)
    trainer = Trainer(pivot, SETTINGS, seed=0)
    trainer.fit(rows_of(0, 64))
    trainer.engine.student.model.save_pretrained(folder / "trained")
    noisy = AutoModelForCausalLM.from_pretrained(pivot)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight += 0.02 * torch.randn_like(weight)
    noisy.save_pretrained(folder / "noise")
    opened = [open_checkpoint(str(folder / name)) for name in ("pivot", "trained", "noise")]
    names = [name for name in opened[0].tensors if name != "lm_head.weight" or not opened[0].ties_embeddings]
    return Family(pivot, {name: tuple(checkpoint.tensors[name] for checkpoint in opened) for name in names})


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def tied_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


# --- the algorithm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [1, 2, 4])
def test_projection_finds_the_nearest_weights(targets: int) -> None:
    weights_GJ = np.random.default_rng(targets).normal(0.3, 0.6, (200, targets))
    expected_GJ = np.array([naive_project(weights_J) for weights_J in weights_GJ])
    np.testing.assert_allclose(project(weights_GJ), expected_GJ, atol=1e-12)
    inside_GJ = project(weights_GJ)
    np.testing.assert_allclose(project(inside_GJ), inside_GJ, atol=1e-12)


@pytest.mark.parametrize("simplex", [True, False])
def test_descent_finds_the_bottom_of_a_bowl(simplex: bool) -> None:
    bottom_GJ = np.array([[0.6, 0.1], [1.3, 0.4], [0.2, -0.5]])
    descent = Descent(np.full((3, 2), 0.5), learning_rate=0.1, steps=300, simplex=simplex)
    for _ in range(300):
        descent.step(2.0 * (descent.weights_GJ - bottom_GJ))
    expected_GJ = np.array([naive_project(row_J) for row_J in bottom_GJ]) if simplex else bottom_GJ
    np.testing.assert_allclose(descent.weights_GJ, expected_GJ, atol=5e-3)


def test_a_part_without_slopes_stays_where_it_was() -> None:
    start_GJ = np.array([[0.25, 0.75], [0.5, 0.5]])
    descent = Descent(start_GJ, learning_rate=0.1, steps=3, simplex=True)
    descent.step(np.array([[0.0, 0.0], [1.0, -1.0]]))
    assert descent.weights_GJ[0].tolist() == [0.25, 0.75]
    assert descent.weights_GJ[1, 1] > 0.5


def test_a_first_step_from_weights_that_sum_to_one_goes_to_the_better_target() -> None:
    descent = Descent(np.array([[0.5, 0.5]]), learning_rate=0.1, steps=10, simplex=True)
    descent.step(np.array([[-1.0, -0.5]]))
    assert descent.weights_GJ[0, 0] > 0.5 > descent.weights_GJ[0, 1]


def test_the_merge_is_the_weighted_sum_and_unmoved_tensors_are_the_pivots() -> None:
    random = np.random.default_rng(0)
    models_M = tuple(random.normal(size=(5, 7)).astype(np.float32) for _ in range(3))
    weights_M = with_pivot(np.array([0.7, 0.6]))
    merged = gather(merge_learned(ArrayTensor(models_M, 2), weights_M), (5, 7))
    expected = naive_linear([model.astype(np.float64) for model in models_M], [-0.3, 0.7, 0.6], normalize=False)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(gather(merge_learned(ArrayTensor(models_M, 2), None), (5, 7)), models_M[0])


# --- the mixture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["family", "tied_family"])
def test_slopes_are_those_of_plain_autograd_through_the_merge(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: Family = request.getfixturevalue(kind)
    monkeypatch.setattr(mixture, "_STRETCH", 1000)  # So that tensors are read in several stretches.
    batch = make_batch(rows_of(5), Batch(128, ((0, 1), (2, 4))), SETTINGS, lambda_=0.5, pad_id=0)
    random = np.random.default_rng(1)
    weights = {name: with_pivot(random.uniform(0.1, 0.7, 2)) for name in family.tensors}
    mixed = Mixture(family.pivot, family.tensors, SETTINGS)
    mixed.set_weights(weights)
    loss, _, _ = mixed.student(batch, float(len(batch.target)))
    loss.backward()
    ours = mixed.take_slopes()
    assert all(weight.grad is None for weight in mixed.student.parameters())

    model = AutoModelForCausalLM.from_pretrained(family.pivot).double()
    given = {name: torch.tensor(values[1:], requires_grad=True) for name, values in weights.items()}
    merged = {
        name: pivot + sum(a * (target - pivot) for a, target in zip(given[name], targets, strict=True))
        for name, (pivot, *targets) in family.whole().items()
    }
    inputs = {"input_ids": batch.input_ids_BW, "position_ids": batch.position_ids_BW, "use_cache": False}
    base = {name.removeprefix("model."): value for name, value in merged.items() if name != "lm_head.weight"}
    hidden_BWD = torch.func.functional_call(model.base_model, base, kwargs=inputs).last_hidden_state
    head_VD = merged.get("lm_head.weight", merged["model.embed_tokens.weight"])
    naive = naive_fusion_loss(hidden_BWD.flatten(0, 1)[batch.before_N], head_VD, batch.target)
    naive.backward()
    assert float(loss.detach()) == pytest.approx(float(naive.detach()), rel=1e-5)
    for name, slopes_J in ours.items():
        expected_J = given[name].grad
        assert expected_J is not None
        np.testing.assert_allclose(slopes_J, expected_J.numpy(), rtol=2e-3, atol=2e-5, err_msg=name)


def test_a_mixture_with_all_weight_on_one_model_is_that_model(family: Family) -> None:
    mixed = Mixture(family.pivot, family.tensors, SETTINGS)
    mixed.set_weights({name: np.array([0.0, 1.0, 0.0]) for name in family.tensors})
    for name, weight in mixed.student.model.named_parameters():
        assert torch.equal(weight, family.whole()[name][1].float()), name


def test_a_tensor_that_is_no_parameter_is_refused_by_name(family: Family) -> None:
    renamed = {"model.other": next(iter(family.tensors.values()))}
    with pytest.raises(EngineError, match=r"model\.other is no parameter of LlamaForCausalLM"):
        Mixture(family.pivot, renamed, SETTINGS)


# --- learning --------------------------------------------------------------------------------------------------


def learn(family: Family, granularity: str, method: Learned, descended: TrainingRows, judged: TrainingRows):  # type: ignore[no-untyped-def]
    parts = {name: name if granularity == "matrix" else "" for name in family.tensors}
    start = dict.fromkeys(parts.values(), (0.1, 0.9))
    mixed = Mixture(family.pivot, family.tensors, SETTINGS)
    return learn_weights(mixed, parts, start, descended, judged, SETTINGS, method)


@pytest.mark.parametrize("members", ["simplex", "free"])
@pytest.mark.parametrize("granularity", ["matrix", "model"])
def test_learning_finds_the_target_that_helps(family: Family, granularity: str, members: str) -> None:
    method = Learned(members=members, steps=24, learning_rate=0.1)  # type: ignore[arg-type]
    points = learn(family, granularity, method, rows_of(1, 32), rows_of(2, 32))
    best = best_point(points)
    assert points[0].step == 0
    assert set(points[0].weights.values()) == {(0.1, 0.9)}
    assert best.bits_per_byte < points[0].bits_per_byte - 0.2
    trained, noise = np.mean(list(best.weights.values()), axis=0)
    assert trained > 0.4
    assert noise < 0.9
    if members == "simplex":
        assert noise < 0.4
        weights = np.array(list(best.weights.values()))
        assert weights.min() >= 0
        assert weights.sum(axis=1).max() <= 1 + 1e-12


def test_equal_seeds_learn_equal_weights(family: Family) -> None:
    method = Learned(steps=4)
    first, second = (learn(family, "matrix", method, rows_of(1), rows_of(2)) for _ in range(2))
    assert first == second


def test_where_every_step_makes_it_worse_the_start_is_kept(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    uphill = learned_weights.Descent.step
    monkeypatch.setattr(learned_weights.Descent, "step", lambda self, slopes: uphill(self, -slopes))
    points = learn(family, "model", Learned(steps=4), rows_of(1), rows_of(2))
    assert points[-1].bits_per_byte > points[0].bits_per_byte
    assert best_point(points).step == 0


def test_learning_without_rows_for_both_halves_is_refused(family: Family) -> None:
    none = TrainingRows([], max_length=64)
    for descended, judged in ((rows_of(1), none), (none, rows_of(1))):
        with pytest.raises(RecipeError, match=r"too few validation chats.*corpus\.validation"):
            learn(family, "model", Learned(steps=1), descended, judged)


def test_rows_of_another_vocabulary_are_refused(family: Family) -> None:
    strange = TrainingRows([toy_fused(16, vocabulary=9000)], max_length=64)
    with pytest.raises(CorruptArtifactError, match="vocabulary has 300 entries"):
        learn(family, "model", Learned(steps=1), strange, rows_of(2))


def test_weights_that_run_away_are_an_error_and_not_a_number(family: Family) -> None:
    with pytest.raises(NonFiniteError, match="learning_rate"):
        learn(family, "matrix", Learned(members="free", learning_rate=1e38, steps=3), rows_of(1), rows_of(2))
