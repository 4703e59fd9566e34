"""What is kept of vLLM's flat lists; the engine itself is tested in tests/integration."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import toys.models as toy_models

from fusion_ray.errors import EngineError
from fusion_ray.models.scorer import DrawSettings
from fusion_ray.models.vllm import FlatLists, VllmScorer, _keep
from fusion_ray.recipe import VllmEngine


def test_padding_rows_are_left_out_and_the_next_ones_kept():
    ids_TA = np.array([[90, 4, 91, 7], [1, 2, 3, 90]], dtype=np.int32)
    logprobs_TA = np.log(np.array([[0.4, 0.3, 0.2, 0.05], [0.4, 0.3, 0.2, 0.05]], dtype=np.float32))
    kept = _keep(ids_TA, logprobs_TA, np.zeros(2, dtype=np.float32), k=3, n_tokens=90)
    assert kept.ids_TK.tolist() == [[4, 7, -1], [1, 2, 3]]
    assert np.isneginf(kept.logprobs_TK[0, 2]) and np.exp(kept.logprobs_TK[0, 0]) == pytest.approx(0.3)
    assert kept.ids_TK.dtype == np.int32 and kept.logprobs_TK.dtype == np.float32


def test_equal_log_probabilities_are_kept_in_order_of_their_ids():
    kept = _keep(np.array([[9, 3, 5]]), np.full((1, 3), -1.0), np.zeros(1), k=2, n_tokens=10)
    assert kept.ids_TK.tolist() == [[3, 5]]


def test_answer_positions_are_cut_out_of_the_flat_lists():
    # Positions 1, 2 and 3, each with the real token first and then the two most probable.
    flat = SimpleNamespace(
        token_ids=[11, 1, 2, 12, 3, 4, 5, 5, 6], logprobs=[-9.0, -1.0, -2.0, -8.0, -0.5, -3.0, -0.1, -0.1, -4.0]
    )
    kept = FlatLists("models/a", asked=2, top_k=2, n_tokens=100).read(flat, np.array([1, 3]))
    assert kept.ids_TK.tolist() == [[1, 2], [5, 6]]
    np.testing.assert_allclose(kept.real_logprobs_T, [-9.0, -0.1])
    np.testing.assert_allclose(kept.logprobs_TK, [[-1.0, -2.0], [-0.1, -4.0]])


def test_vllm_s_own_top_k_is_not_taken_for_draws():
    lists = FlatLists("models/a", asked=2, top_k=2, n_tokens=100, drawn=True)
    flat = SimpleNamespace(token_ids=[11, 1, 2], logprobs=[-9.0, -1.0, -2.0], ranks=[0, 1, 2])
    assert lists.read(flat, np.array([1])).ids_TK.tolist() == [[1, 2]]
    flat.ranks[0] = 37
    with pytest.raises(EngineError, match="models/a: this vLLM keeps log-probabilities without asking its sampler"):
        lists.read(flat, np.array([1]))
    assert lists._replace(drawn=False).read(flat, np.array([1])).ids_TK.tolist() == [[1, 2]]


def test_a_missing_vllm_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    folder = toy_models.save_toy(tmp_path, "llama", toy_models.byte_level_tokenizer())
    real_import = builtins.__import__

    def without_vllm(name, *rest, **more):
        if name == "vllm":
            raise ImportError("No module named 'vllm'")
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_vllm)
    monkeypatch.setattr("fusion_ray.models.vllm._CPU_ENVIRONMENT", {})
    monkeypatch.setattr("fusion_ray.models.vllm._ENVIRONMENT", {})
    with pytest.raises(EngineError, match="Install the extra 'vllm'"):
        VllmScorer(folder, 4)


def test_draws_with_a_worker_extension_of_the_users_own_are_refused(tmp_path):
    folder = toy_models.save_toy(tmp_path, "llama", toy_models.byte_level_tokenizer())
    with pytest.raises(EngineError, match=r"the engine's options give mine\.Extension\. Leave it out"):
        VllmScorer(folder, 4, VllmEngine(options={"worker_extension_cls": "mine.Extension"}), sampling=DrawSettings(2))
