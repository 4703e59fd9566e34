"""What engines refuse, batch, draw and read from a folder: every bound by hand, without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fusion_ray.errors import EngineError
from fusion_ray.models import head
from fusion_ray.models.folders import check_weights, end_tokens, load_tokenizer, longest_sequence, read_config
from fusion_ray.models.generator import Completion, DecodingOptions, Generator
from fusion_ray.models.head import Kept, OutputHead, keep_draws, keep_top_k, logit_rule, uniforms_of
from fusion_ray.models.opening import trained_engine
from fusion_ray.models.scorer import DrawSettings, check_request, check_sizes, empty_top_k
from fusion_ray.models.transformers import TransformersGenerator, _Batch, _batches, _drawing
from fusion_ray.recipe import OpenAIEngine, TransformersEngine, parse_recipe


@pytest.mark.parametrize(
    ("ids", "positions", "max_length", "said"),
    [
        ([0, 5, 9], [1, 2], 3, ""),
        ([0, 5, 9], [], None, ""),
        ([], [], 0, ""),
        ([9], [], 1, ""),
        ([0, 5, 9], [1], 2, "sequence 1: 3 tokens, and the model reads at most 2"),
        ([0, 10], [1], None, "sequence 1: it holds the token id 10, and the model has 10"),
        ([-1, 3], [1], None, "sequence 1: it holds the token id 3, and the model has 10"),
        ([1, 2, 3], [0, 1], None, "sequence 1: positions 0 to 1 were asked for; expected 1 to 2,"),
        ([1, 2, 3], [1, 3], None, "sequence 1: positions 1 to 3 were asked for; expected 1 to 2,"),
        ([1], [1], None, "sequence 1: positions 1 to 1 were asked for; expected 1 to 0,"),
    ],
)
def test_a_sequence_is_refused_by_its_length_its_tokens_or_its_positions(
    ids: list[int], positions: list[int], max_length: int | None, said: str
) -> None:
    fine = (np.array([1]), np.array([], dtype=np.int64))
    given = [fine[0], np.array(ids, dtype=np.int64)], [fine[1], np.array(positions, dtype=np.int64)]
    if said:
        with pytest.raises(EngineError, match=said):
            check_request(*given, max_length, 10)
        return
    check_request([given[0][1]], [given[1][1]], max_length, 10)
    with pytest.raises(EngineError, match="2 sequences and 1 lists"):
        check_request(given[0], given[1][:1], max_length, 10)


def test_sizes_may_be_equal_and_no_larger() -> None:
    check_sizes("x", 5, 5, 5)
    with pytest.raises(EngineError, match="x: the tokenizer has 6 tokens and the model's output head 5"):
        check_sizes("x", 5, 6, 5)
    for drawn, name in ((False, "top_k"), (True, r"store\.draws")):
        with pytest.raises(EngineError, match=rf"x: {name} is 6 and the tokenizer has 5 tokens\. Lower distributions"):
            check_sizes("x", 6, 5, 9, drawn=drawn)
    nothing = empty_top_k(3)
    assert (nothing.ids_TK.shape, nothing.logprobs_TK.shape, len(nothing)) == ((0, 3), (0, 3), 0)
    assert (nothing.ids_TK.dtype, nothing.logprobs_TK.dtype, DrawSettings(4).seed) == (np.int32, np.float32, 0)


@pytest.mark.parametrize(
    ("lengths", "tokens", "batches"),
    [
        ([], 10, []),
        ([0, 0], 10, []),
        ([3, 5, 0, 5, 2], 10, [([1, 3], 5), ([0, 4], 3)]),
        ([5, 5], 9, [([0], 5), ([1], 5)]),
        ([4, 4, 4], 12, [([0, 1, 2], 4)]),
        ([20], 10, [([0], 20)]),
        ([20, 1], 21, [([0], 20), ([1], 1)]),
        ([5, 2, 2, 2], 6, [([0], 5), ([1, 2, 3], 2)]),
    ],
)
def test_rows_are_batched_longest_first_within_their_tokens(
    lengths: list[int], tokens: int, batches: list[tuple[list[int], int]]
) -> None:
    assert _batches(lengths, tokens) == [_Batch(*batch) for batch in batches]


class Parrot(Generator):
    """Notes what it is asked for, and says how many tokens each prompt has."""

    def __init__(self, max_length: int | None = None, own_ends: frozenset[int] = frozenset()) -> None:
        self.max_length, self.own_ends = max_length, own_ends

    def _write(self, prompts: Sequence[np.ndarray], how: DecodingOptions) -> list[Completion]:
        self.how = how
        return [Completion(str(len(prompt)), len(prompt) > 1) for prompt in prompts]

    def close(self) -> None:
        """Nothing to free."""


def test_answers_end_at_the_model_s_own_ends_too() -> None:
    prompts, parrot = [np.zeros(1), np.zeros(2)], Parrot(own_ends=frozenset({7, 2}))
    assert parrot.generate(prompts, max_tokens=3, end_ids=[5, 7]) == ["1", "2"]
    assert parrot.how == DecodingOptions(3, [2, 5, 7], 0.0, None)
    drawn = parrot.sample(prompts, max_tokens=4, end_ids=[], temperature=0.5, seeds=[8, 9])
    assert drawn == [Completion("1", False), Completion("2", True)]
    assert parrot.how == DecodingOptions(4, [2, 7], 0.5, [8, 9])
    rooms = [(None, 100), (10, 7), (4, 1), (3, 1), (2, 1)]
    assert [Parrot(max_length)._room(3, 100) for max_length, _ in rooms] == [room for _, room in rooms]
    assert Parrot(10)._room(3, 7) == Parrot(10)._room(2, 7) == 7 and Parrot(10)._room(4, 7) == 6


@pytest.mark.parametrize(
    ("padded", "groups"),
    [
        # Prompts of 2, 3, 3, 4 and 9 tokens have room for 4, 4, 4, 4 and 1 more.
        (True, [[0], [2, 3], [1], [4]]),
        (False, [[0], [2, 3], [1], [4]]),
    ],
)
def test_prompts_of_equal_room_are_written_together(padded: bool, groups: list[list[int]]) -> None:
    generator = TransformersGenerator.__new__(TransformersGenerator)
    generator.max_length, generator._tokens_per_batch = 10, 14
    generator.__dict__["_takes_padding"] = padded
    prompts = [np.zeros(length) for length in (2, 4, 3, 3, 9)]
    assert list(generator._together(prompts, 4)) == ([[0, 2], [3], [1], [4]] if padded else groups)
    generator._tokens_per_batch = 1000
    assert list(generator._together(prompts, 4)) == ([[0, 2, 3, 1], [4]] if padded else groups)
    assert list(generator._together(prompts[:0], 4)) == []


def test_a_token_is_drawn_where_its_number_falls_and_never_from_the_padding() -> None:
    seeds = [3, 4, 5, 6, 7]
    numbers = [np.random.default_rng(seed).random() for seed in seeds]
    logits_V = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0]).log()
    for temperature, weights in ((1.0, [0.1, 0.2, 0.3, 0.4]), (0.5, [0.01, 0.04, 0.09, 0.16])):
        chosen = _drawing(temperature, seeds, 4)(None, logits_V.expand(5, 5).clone())
        shares = np.cumsum(weights) / sum(weights)
        assert chosen.argmax(dim=1).tolist() == [int((shares <= number).sum()) for number in numbers]
        assert (chosen == 0).sum(dim=1).tolist() == [1] * 5 and chosen.dtype == torch.float32
        assert torch.isneginf(chosen).sum(dim=1).tolist() == [4] * 5
    one, again = _drawing(1.0, [3], 4), np.random.default_rng(3)
    for _ in range(20):
        number = again.random()
        (found,) = one(None, logits_V[None].clone()).argmax(dim=1).tolist()
        assert found == int((np.cumsum([0.1, 0.2, 0.3, 0.4]) <= number).sum())


def test_numbers_of_tokens_are_splitmix64() -> None:
    # The generator's published first three outputs of seed 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [number % 2**64 for number in head._splitmix64(torch.tensor([1, 2, 3])).tolist()] == expected

    def mix(number: int) -> int:
        number = number * 0x9E3779B97F4A7C15 % 2**64
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return number ^ number >> 31

    ids, total, numbers = [5, 0, 7, 5], 0, []
    for place, token in enumerate(ids, start=1):
        total += mix(token + (place << 32))
        numbers.append((mix((total + 9) % 2**64) >> 11) / 2**53)
    assert uniforms_of(torch.tensor(ids), seed=9).tolist() == numbers
    assert uniforms_of(torch.tensor([], dtype=torch.int64), seed=9).tolist() == []


@pytest.mark.parametrize(
    ("total", "largest", "in_head"),
    [
        (1.0, [0.5, 0.3], [True, False]),  # Three entries: a third, then a quarter of what is left, ...
        (1.0, [0.5, 0.5], [True, True]),
        (1.0, [0.4, 0.35], [False, False]),
        (0.8, [0.4, 0.4], [True, True]),
        (1.0, [0.6, 0.4], [True, True]),
        (1.0, [0.25, 0.25, 0.25, 0.25], [True] * 4),
        (1.0, [0.3, 0.2, 0.2, 0.2], [True, False, False, False]),
        (1.0, [0.2, 0.2, 0.2, 0.2, 0.2], [True] * 5),
    ],
)
def test_a_token_is_kept_whole_where_it_has_the_share_of_a_draw(
    total: float, largest: list[float], in_head: list[bool]
) -> None:
    found = head._in_head(torch.tensor([total]).double(), torch.tensor([largest]).double())
    assert found.tolist() == [in_head]


def test_draws_stand_evenly_along_what_is_not_kept_whole() -> None:
    probs_V = torch.tensor([0.05, 0.6, 0.1, 0.05, 0.2])
    for uniform, ids in ((0.0, [1, 0, 4]), (0.7, [1, 2, 4]), (0.8, [1, 3, 4])):
        kept = keep_draws(probs_V.log()[None], torch.tensor([4]), torch.tensor([uniform]).double(), 3, 5)
        assert kept.ids_NK.tolist() == [ids]
        torch.testing.assert_close(kept.logprobs_NK.exp(), torch.tensor([[0.6, 0.2, 0.2]]))
        torch.testing.assert_close(kept.real_logprobs_N.exp(), torch.tensor([0.2]))
    # So near to 1 that the last draw stands at the end of all mass.
    last = keep_draws(probs_V.log()[None], torch.tensor([4]), torch.tensor([1 - 2**-53]).double(), 3, 5)
    assert last.ids_NK.min() >= 0 and last.ids_NK.max() == 4


def test_logits_are_looked_at_as_many_at_a_time_as_a_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_IN_CACHE", 12)
    for shape, expected in (((5, 6), [(0, 2), (2, 4), (4, 6)]), ((2, 99), [(0, 1), (1, 2)]), ((4, 3), [(0, 4)]),
                            ((0, 3), [])):  # fmt: skip
        slices = list(head._in_cache(torch.zeros(shape)))
        assert [(part.start, part.stop) for part in slices] == expected
    logits_NV = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    kept = keep_top_k(logits_NV, torch.arange(7) % 5, 2, 4)
    logprobs_NV = logits_NV.log_softmax(dim=1)
    torch.testing.assert_close(kept.logprobs_NK, logprobs_NV[:, :4].topk(2, dim=1).values)
    torch.testing.assert_close(kept.real_logprobs_N, logprobs_NV[torch.arange(7), torch.arange(7) % 5])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("columns", [64 * 4, 64 * 5 - 1, 64 * 8 + 1, 64 * 9, 64 * 12, 64 * 13, 64 * 16 + 63])
def test_the_largest_of_few_values_are_the_lowest_ids_in_any_number_of_blocks(k: int, columns: int) -> None:
    random = np.random.default_rng(columns + k)
    logits_NV = torch.from_numpy(random.integers(0, 4, (30, columns)).astype(np.float32) * 2)
    for row in range(1, 10):  # One, two ... larger values, so that the edge of the k lies among equals or not.
        logits_NV[row, random.choice(columns - 5, row, replace=False)] = 9.0
    logits_NV[20:] = torch.from_numpy(
        random.permuted(np.tile(np.arange(columns, dtype=np.float32) / 64, (10, 1)), axis=1)
    )
    kept = keep_top_k(logits_NV, torch.zeros(30, dtype=torch.int64), k, columns - 5)
    order = logits_NV[:, : columns - 5].sort(dim=1, descending=True, stable=True)
    assert torch.equal(kept.ids_NK, order.indices[:, :k])
    torch.testing.assert_close(kept.logprobs_NK, order.values[:, :k] - logits_NV.logsumexp(dim=1)[:, None])


def config_of(**settings: Any) -> Any:
    return SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, (1.0, None)),
        ({"logit_scale": 0.25}, (0.25, None)),
        ({"logits_scaling": 4.0}, (0.25, None)),
        ({"logit_scale": 3.0, "logits_scaling": 2.0, "final_logit_softcapping": 30.0}, (1.5, 30.0)),
        ({"logit_scale": None, "logits_scaling": 0, "final_logit_softcapping": None}, (1.0, None)),
    ],
)
def test_a_config_says_what_happens_to_logits(settings: dict[str, Any], rule: tuple[float, float | None]) -> None:
    assert logit_rule(SimpleNamespace(config=config_of(**settings))) == rule
    made = OutputHead.__new__(OutputHead)
    made._matrix, made._rule = torch.nn.Identity(), logit_rule(SimpleNamespace(config=config_of(**settings)))
    scaled = torch.tensor([1.0, -2.0]) * rule[0]
    expected = scaled if rule[1] is None else 30 * torch.tanh(scaled / 30)
    torch.testing.assert_close(made.logits(torch.tensor([1.0, -2.0])), expected)


def test_positions_are_taken_some_at_a_time() -> None:
    made = OutputHead.__new__(OutputHead)
    made._matrix, made._rule = torch.nn.Identity(), head.LogitRule(1.0, None)
    hidden_ND, seen = torch.arange(10.0).reshape(5, 2), []

    def keep(logits_NV: torch.Tensor, part: slice) -> Kept:
        seen.append((part.start, part.stop, logits_NV.tolist()))
        return Kept(logits_NV, logits_NV, logits_NV)

    assert len(list(made.chunks(hidden_ND, keep, 2))) == 3
    assert seen == [(0, 2, [[0, 1], [2, 3]]), (2, 4, [[4, 5], [6, 7]]), (4, 5, [[8, 9]])]


def test_the_ends_of_a_model_are_all_that_its_files_name(tmp_path: Path) -> None:
    tokenizer, config = SimpleNamespace(eos_token_id=2), tmp_path / "config.json"
    for text, ends in (
        ({}, {2}), ({"eos_token_id": 0}, {0, 2}), ({"eos_token_id": [3, 4]}, {2, 3, 4}),
        ({"eos_token_id": None, "text_config": {"eos_token_id": 5}}, {2, 5}),
    ):  # fmt: skip
        config.write_text(json.dumps(text))
        assert end_tokens(str(tmp_path), tokenizer) == ends
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert end_tokens(str(tmp_path), SimpleNamespace(eos_token_id=None)) == {5, 8, 9}
    for text, said in (("[]", "expected an object, got list"), ("{", "not valid JSON")):
        config.write_text(text)
        with pytest.raises(EngineError, match=rf"config\.json: {said}"):
            read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"max_position_embeddings": 8, "n_positions": 9}, 8),
        ({"max_position_embeddings": None, "n_positions": 9}, 9),
        ({"max_position_embeddings": 8.0, "max_seq_len": 7}, 7),
        ({"max_sequence_length": 6, "text_config": {"max_position_embeddings": 5}}, 6),
        ({"text_config": {"max_position_embeddings": 5}}, 5),
    ],
)
def test_the_longest_sequence_is_the_first_whole_number_that_names_it(
    config: dict[str, Any], longest: int | None
) -> None:
    assert longest_sequence(config) == longest


def test_a_folder_is_read_as_its_own_files_say(tmp_path: Path) -> None:
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    with pytest.raises(EngineError, match="nowhere: no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(EngineError, match=f"{tmp_path} has no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=f"{tmp_path}: its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))
    made.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("ab")["input_ids"] == [0, 1]
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(EngineError, match="has no weights"):
        check_weights(str(tmp_path))


def test_a_trained_model_is_opened_as_the_pivot_was_but_never_behind_a_server() -> None:
    server = {"kind": "openai", "base_url": "http://localhost:1"}
    recipe = {
        "name": "x", "pivot": {"model": "one"}, "sources": [{"name": "a", "model": "two"}], "corpus": {"path": "c"}
    }  # fmt: skip
    ours = {"kind": "transformers", "tokens_per_batch": 77}
    for pivot, everywhere, expected in (
        (None, ours, TransformersEngine(tokens_per_batch=77)),
        (ours, server, TransformersEngine(tokens_per_batch=77)),
        (server, ours, TransformersEngine()),
        (None, server, TransformersEngine()),
    ):
        given = recipe | {"distributions": {"engine": everywhere}}
        given["pivot"] = {"model": "one"} | ({"engine": pivot} if pivot else {})
        found = trained_engine(parse_recipe(given))
        assert found == expected and not isinstance(found, OpenAIEngine)
