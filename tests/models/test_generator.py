"""What a small real model writes equals a plain loop over its logits, greedily and drawn, alone and in any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys.models import FLOAT32, byte_level_tokenizer, save_toy

from fusion_ray.errors import EngineError
from fusion_ray.models import transformers
from fusion_ray.models.folders import load_model
from fusion_ray.models.generator import Completion
from fusion_ray.models.opening import make_generator, open_scorer
from fusion_ray.models.transformers import TransformersGenerator
from fusion_ray.recipe import Distributions, Model, TransformersEngine

PROMPTS = [np.array([70, 80, 90]), np.array([65, 66, 67, 68, 69, 70, 71]), np.array([100, 101, 102])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("llama"), "llama", byte_level_tokenizer())


@pytest.fixture(scope="module")
def generator(folder: str) -> TransformersGenerator:
    return TransformersGenerator(folder, 24, FLOAT32)


def written(folder: str, prompt: np.ndarray, room: int, seed: int | None = None, temperature: float = 1.0) -> list[int]:
    """The tokens after a prompt, one by one; with a seed each is drawn."""
    model, ids, numbers = load_model(folder, FLOAT32), prompt.tolist(), np.random.default_rng(seed)
    for _ in range(room):
        with torch.no_grad():
            logits_V = model(torch.tensor([ids])).logits[0, -1].double()
        if seed is None:
            ids.append(int(logits_V.argmax()))
        else:
            below_V = torch.softmax(logits_V[:600] / temperature, dim=0).cumsum(dim=0).numpy()
            ids.append(int(np.searchsorted(below_V, numbers.random() * below_V[-1], side="right")))
    return ids[len(prompt) :]


def cut(tokens: list[int], ends: set[int]) -> Completion:
    place = next((place for place, token in enumerate(tokens) if token in ends), None)
    text = byte_level_tokenizer().decode(tokens[:place], skip_special_tokens=True)
    return Completion(text, place is not None)


def test_greedy_answers_are_the_most_probable_tokens_up_to_an_end(
    folder: str, generator: TransformersGenerator
) -> None:
    tokens = [written(folder, prompt, 10) for prompt in PROMPTS]
    end = tokens[0][4]
    expected = [cut(each, {end, 2}) for each in tokens]
    assert generator.generate(PROMPTS, max_tokens=10, end_ids=[end]) == [each.text for each in expected]
    assert expected[0].ended and generator.own_ends == {2} and generator.max_length == 24
    assert generator.generate(PROMPTS[:1], max_tokens=1, end_ids=[]) == [cut(tokens[0][:1], {2}).text]
    assert generator.generate([], max_tokens=10, end_ids=[]) == []
    long = np.arange(60, 82)  # Of 24 tokens 22 are taken.
    assert generator.generate([long], max_tokens=10, end_ids=[]) == [cut(written(folder, long, 2), {2}).text]


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_drawn_answers_are_those_of_their_own_seed_in_any_batch(
    folder: str, generator: TransformersGenerator, tokens_per_batch: int, temperature: float
) -> None:
    seeds = [3, 4, 5]
    tokens = [written(folder, prompt, 8, seed, temperature) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    end = tokens[1][3]
    generator._tokens_per_batch = tokens_per_batch
    found = generator.sample(PROMPTS, max_tokens=8, end_ids=[end], temperature=temperature, seeds=seeds)
    assert found == [cut(each, {end, 2}) for each in tokens]
    assert found[1].ended


def test_a_model_that_is_loaded_to_be_read_learns_nothing(folder: str) -> None:
    model = load_model(folder, FLOAT32)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


def test_a_model_that_only_reads_padding_after_its_own_mask_takes_it(generator: TransformersGenerator) -> None:
    assert generator._takes_padding


@pytest.mark.parametrize(("asked", "limit"), [(None, 256), (300, 256), (24, 24)])
def test_the_longest_answer_ends_where_the_model_or_the_recipe_says(folder: str, asked: int | None, limit: int) -> None:
    made = make_generator(FLOAT32, folder, max_length=asked)
    assert made.max_length == limit
    made.close()


def test_a_device_that_failed_is_an_error_with_the_batch_s_size_and_any_other_error_stays(
    generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, kind, said in (
        (torch.OutOfMemoryError("full"), EngineError, r"failed while continuing 1 prompts of up to 7 tokens \(full\)"),
        (RuntimeError("shapes"), RuntimeError, "^shapes$"),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(generator, "_continue", fail)
        with pytest.raises(kind, match=said):
            generator.generate(PROMPTS[1:2], max_tokens=3, end_ids=[])


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (2, 2)])
def test_a_scorer_takes_as_many_threads_as_it_has_cpus(folder: str, cpus: float, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        settings = Distributions(cpus_per_actor=cpus, top_k=3, engine=TransformersEngine(dtype="float32"))
        scorer = open_scorer(Model(model=folder), settings, folder)
        assert torch.get_num_threads() == threads
        (found,) = scorer.score([np.array([5, 6, 7], dtype=np.int32)], [np.array([1, 2])])
        assert found.ids_TK.shape == (2, 3)
    finally:
        torch.set_num_threads(before)


def test_an_engine_of_its_own_goes_before_the_recipe_s_and_draws_replace_the_largest(folder: str) -> None:
    settings = Distributions(
        engine={"kind": "openai", "base_url": "http://localhost:1"}, store={"kind": "sampled", "draws": 7, "seed": 3}
    )  # type: ignore[arg-type]
    own = Model(model=folder, engine=TransformersEngine(dtype="float32"))
    scorer: Any = open_scorer(own, settings, folder)
    assert (scorer._sampling.draws, scorer._sampling.seed, scorer._top_k) == (7, 3, 7)
    with pytest.raises(EngineError, match="engine openai: draws need the whole distribution"):
        open_scorer(Model(model=folder), settings, folder)
    assert Path(folder, "config.json").exists()


def test_positions_are_scored_as_many_at_a_time_as_their_logits_fit(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer: Any = open_scorer(Model(model=folder), Distributions(top_k=3, engine=FLOAT32), folder)
    columns = scorer._n_outputs
    ids, positions = [np.arange(5, 25), np.arange(40, 47)], [np.array([1, 2, 5, 9, 19]), np.array([1, 6])]
    whole = scorer.score(ids, positions)
    for held, expected in ((2 * columns, 2), (2 * columns - 1, 1), (1, 1), (3 * columns + 1, 3)):
        monkeypatch.setitem(transformers._LOGITS_AT_ONCE, "cpu", held)
        assert scorer._positions_at_once() == expected
        for checked in (True, False):
            monkeypatch.setattr(scorer._head, "checked", checked)
            for one, other in zip(scorer.score(ids, positions), whole, strict=True):
                np.testing.assert_array_equal(one.ids_TK, other.ids_TK)
                np.testing.assert_allclose(one.logprobs_TK, other.logprobs_TK, atol=2e-5)
                np.testing.assert_allclose(one.real_logprobs_T, other.real_logprobs_T, atol=2e-5)
