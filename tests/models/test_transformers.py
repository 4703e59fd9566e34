"""The Transformers scorer equals a plain computation over all logits, for several architectures."""

from pathlib import Path

import numpy as np
import pytest
import torch
import toys.models as toy_models
from toys.models import FLOAT32
from transformers import AutoModelForCausalLM

from fusion_ray.errors import EngineError, NonFiniteError
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.models.head import keep_top_k
from fusion_ray.models.opening import make_scorer
from fusion_ray.models.transformers import TransformersScorer, is_fatal
from fusion_ray.recipe import TransformersEngine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A toy of each architecture, made when it is first asked for."""
    made: dict[str, str] = {}

    def get(architecture: str) -> str:
        if architecture not in made:
            tokenizer = toy_models.byte_level_tokenizer()
            made[architecture] = toy_models.save_toy(tmp_path_factory.mktemp(architecture), architecture, tokenizer)
        return made[architecture]

    return get


def requests(n_tokens: int, lengths=(40, 3, 90, 17, 90), seed: int = 0):
    """Random sequences with some positions of each."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, n_tokens, length).astype(np.int32) for length in lengths]
    positions = [np.sort(rng.choice(np.arange(1, len(row)), max(1, len(row) // 2), replace=False)) for row in ids]
    return ids, positions


def plain_score(folder: str, ids: np.ndarray, positions: np.ndarray, k: int, n_tokens: int):
    """All logits of one sequence in float32, then everything by definition; eager attention leaves nothing out."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits_TV = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double()
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)[positions - 1].numpy()
    order_TK = np.argsort(-logprobs_TV[:, :n_tokens], axis=1, kind="stable")[:, :k]
    return order_TK, np.take_along_axis(logprobs_TV, order_TK, 1), logprobs_TV[range(len(positions)), ids[positions]]


@pytest.mark.parametrize("architecture", toy_models.ARCHITECTURES)
def test_scorer_equals_a_plain_computation_over_all_logits(folders, architecture):
    folder = folders(architecture)
    scorer = TransformersScorer(folder, 8, engine=TransformersEngine(dtype="float32", tokens_per_batch=100))
    assert scorer._head.checked
    ids, positions = requests(scorer.n_tokens)
    for row, result in enumerate(scorer.score(ids, positions)):
        want_ids, want_logprobs, want_real = plain_score(folder, ids[row], positions[row], 8, scorer.n_tokens)
        np.testing.assert_allclose(result.logprobs_TK, want_logprobs, atol=2e-5)
        np.testing.assert_allclose(result.real_logprobs_T, want_real, atol=2e-5)
        assert (result.ids_TK == want_ids).mean() > 0.999
        result.check("test")


def test_scorer_equals_plain_computation_where_the_head_is_unknown(folders):
    folder = folders("llama")
    fast = TransformersScorer(folder, 8, FLOAT32)
    slow = TransformersScorer(folder, 8, FLOAT32)
    slow._head.checked = False
    ids, positions = requests(fast.n_tokens)
    for one, other in zip(fast.score(ids, positions), slow.score(ids, positions), strict=True):
        np.testing.assert_allclose(one.logprobs_TK, other.logprobs_TK, atol=2e-5)
        np.testing.assert_allclose(one.real_logprobs_T, other.real_logprobs_T, atol=2e-5)


def test_a_head_that_does_more_than_its_config_says_is_found_out(folders):
    class Louder(torch.nn.Module):
        """A model that doubles its logits after the head."""

        def __init__(self, model):
            super().__init__()
            self.model, self.config, self.base_model = model, model.config, model.base_model
            self.device = model.device

        def get_output_embeddings(self):
            return self.model.get_output_embeddings()

        def forward(self, **inputs):
            output = self.model(**inputs)
            output.logits = output.logits * 2
            return output

    from fusion_ray.models.head import OutputHead

    model = AutoModelForCausalLM.from_pretrained(folders("llama")).eval()
    assert OutputHead(model).checked
    assert not OutputHead(Louder(model)).checked


def test_results_do_not_depend_on_batching(folders):
    ids, positions = requests(600)
    one = TransformersScorer(folders("qwen2"), 5, engine=TransformersEngine(dtype="float32", tokens_per_batch=1)).score(
        ids, positions
    )
    many = TransformersScorer(
        folders("qwen2"), 5, engine=TransformersEngine(dtype="float32", tokens_per_batch=4096)
    ).score(ids, positions)
    for alone, batched in zip(one, many, strict=True):
        np.testing.assert_allclose(alone.logprobs_TK, batched.logprobs_TK, atol=1e-5)
        np.testing.assert_array_equal(alone.ids_TK, batched.ids_TK)


def test_the_same_request_gives_the_same_bytes(folders):
    ids, positions = requests(600)
    scorer = TransformersScorer(folders("gpt_neox"), 5)
    for one, other in zip(scorer.score(ids, positions), scorer.score(ids, positions), strict=True):
        assert one.logprobs_TK.tobytes() == other.logprobs_TK.tobytes()
        assert one.ids_TK.tobytes() == other.ids_TK.tobytes()


def test_rows_that_pad_the_output_head_are_never_kept_but_count_in_the_tail(folders):
    scorer = TransformersScorer(folders("llama"), 600, FLOAT32)
    assert scorer.n_tokens == 600
    ids, positions = requests(600)
    results = scorer.score(ids, positions)
    assert max(result.ids_TK.max() for result in results) == 599
    assert all((result.tail_T > 1e-4).all() for result in results)


def test_a_row_without_positions_gives_an_empty_result(folders):
    scorer = TransformersScorer(folders("llama"), 4)
    ids, positions = requests(600, lengths=(10, 12))
    positions[0] = positions[0][:0]
    empty, full = scorer.score(ids, positions)
    assert empty.ids_TK.shape == (0, 4) and len(full) == len(positions[1])
    assert scorer.score([], []) == []


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("columns", [300, 12_345, 40_064])
def test_top_k_by_blocks_equals_a_full_sort(k, columns):
    rng = np.random.default_rng(k * columns)
    logits_NV = torch.from_numpy(rng.normal(size=(6, columns)).astype(np.float32))
    real_N = torch.from_numpy(rng.integers(0, columns, 6))
    kept = keep_top_k(logits_NV, real_N, k, columns - 37)
    logprobs_NV = torch.log_softmax(logits_NV.double(), -1)
    want = logprobs_NV[:, : columns - 37].sort(descending=True, stable=True)
    assert torch.equal(kept.ids_NK, want.indices[:, :k])
    torch.testing.assert_close(kept.logprobs_NK.double(), want.values[:, :k], atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.real_logprobs_N.double(), logprobs_NV[range(6), real_N], atol=1e-5, rtol=0)


def test_equal_logits_are_kept_in_order_of_their_ids():
    kept = keep_top_k(torch.zeros(2, 100), torch.zeros(2, dtype=torch.int64), 5, 100)
    assert kept.ids_NK.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_factory_starts_what_the_recipe_asks_for(folders):
    engine = TransformersEngine(dtype="float32", tokens_per_batch=64)
    scorer = make_scorer(engine, folders("llama"), 3, max_length=128)
    (result,) = scorer.score([np.arange(10, dtype=np.int32)], [np.array([1, 9])])
    assert result.ids_TK.shape == (2, 3)
    scorer.close()


def test_bfloat16_weights_are_scored_in_their_own_dtype(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders("llama"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    toy_models.byte_level_tokenizer().save_pretrained(tmp_path)
    scorer = TransformersScorer(str(tmp_path), 4)
    assert scorer._model.dtype == torch.bfloat16
    ids, positions = requests(600)
    for result in scorer.score(ids, positions):
        assert result.logprobs_TK.dtype == np.float32
        result.check("test")


def damaged(folder: str, tmp_path: Path, *missing: str) -> str:
    """A copy of a model folder without some files."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*missing))
    return str(copy)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["config.json"], "no config.json"),
        (["tokenizer*"], "no tokenizer"),
        (["*.safetensors"], "no weights"),
    ],
)
def test_an_incomplete_folder_is_named_with_what_it_lacks(folders, tmp_path, missing, words):
    folder = damaged(folders("llama"), tmp_path, *missing)
    with pytest.raises(EngineError, match=words) as caught:
        TransformersScorer(folder, 4)
    assert folder in str(caught.value)


def test_a_missing_folder_is_named():
    with pytest.raises(EngineError, match=r"/nowhere/model: no such folder"):
        TransformersScorer("/nowhere/model", 4)


def test_pickled_weights_are_refused_with_a_hint(folders, tmp_path):
    folder = damaged(folders("llama"), tmp_path, "*.safetensors")
    (Path(folder) / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(EngineError, match=r"pickled weights \(pytorch_model.bin\).*save_pretrained"):
        TransformersScorer(folder, 4)


def test_a_tokenizer_longer_than_the_output_head_is_refused(tmp_path):
    folder = toy_models.save_toy(tmp_path, "llama", toy_models.byte_level_tokenizer(), extra_rows=-1)
    with pytest.raises(EngineError, match="600 tokens and the model's output head 599"):
        TransformersScorer(folder, 4)


def test_a_k_larger_than_the_vocabulary_is_refused(folders):
    with pytest.raises(EngineError, match=r"top_k is 601 and the tokenizer has 600"):
        TransformersScorer(folders("llama"), 601)


def test_a_sequence_longer_than_the_model_is_refused(folders):
    scorer = TransformersScorer(folders("llama"), 4)
    with pytest.raises(EngineError, match="sequence 0: 257 tokens, and the model reads at most 256"):
        scorer.score([np.zeros(257, dtype=np.int32)], [np.array([1])])


@pytest.mark.parametrize("positions", [[0], [10], [-1]])
def test_a_position_that_nothing_predicts_is_refused(folders, positions):
    with pytest.raises(EngineError, match="expected 1 to 9"):
        TransformersScorer(folders("llama"), 4).score([np.zeros(10, dtype=np.int32)], [np.array(positions)])


def test_a_token_that_the_model_lacks_is_refused(folders):
    with pytest.raises(EngineError, match="token id 9999, and the model has 624"):
        TransformersScorer(folders("llama"), 4).score([np.array([1, 9999], dtype=np.int32)], [np.array([1])])


def test_nan_is_handed_on_and_refused_by_the_rows_own_check(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders("llama"))
    model.model.embed_tokens.weight.data[9, 0] = float("nan")
    model.save_pretrained(tmp_path)
    toy_models.byte_level_tokenizer().save_pretrained(tmp_path)
    scorer = TransformersScorer(str(tmp_path), 4)
    sick, well = scorer.score([np.array([8, 9, 3]), np.array([8, 7, 3])], [np.array([2]), np.array([2])])
    well.check("row 2")
    with pytest.raises(NonFiniteError, match="row 1: the model gave NaN"):
        sick.check("row 1")


def test_a_tokenizer_reads_as_its_file_says_whatever_the_model_type(tmp_path: Path) -> None:
    saved = toy_models.sentencepiece_tokenizer()
    folder = toy_models.save_toy(tmp_path / "odd", "qwen2", saved)
    text = "Größe of the answer"
    assert load_tokenizer(folder)(text)["input_ids"] == saved(text)["input_ids"]


@pytest.mark.parametrize("step", [1.0, 0.02, 0.002])  # hundreds, dozens and few of each of the largest values
def test_of_equal_values_at_the_edge_of_the_k_the_lowest_ids_are_kept(step):
    rng = np.random.default_rng(0)
    logits_NV = torch.from_numpy(np.rint(rng.uniform(0, 8, size=(50, 9_000)) / step).astype(np.float32))
    kept = keep_top_k(logits_NV, torch.zeros(50, dtype=torch.int64), 10, 8_990)
    want = logits_NV[:, :8_990].sort(descending=True, stable=True).indices[:, :10]
    assert torch.equal(kept.ids_NK, want)


def test_lack_of_memory_and_a_device_that_failed_end_a_process_and_other_errors_do_not() -> None:
    assert is_fatal(torch.OutOfMemoryError("out of memory"))
    assert is_fatal(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_fatal(RuntimeError("shapes do not match"))
