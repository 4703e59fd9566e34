"""The remote scorer against a real `vllm serve` on loopback: what it gives is what Transformers gives."""

import importlib.util

import numpy as np
import pytest
import toys.models as toy_models
from toys.models import FLOAT32
from toys.vllm_server import vllm_server

from fusion_ray.errors import EngineError
from fusion_ray.models.openai import OpenAIScorer
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.recipe import OpenAIEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy Llama."""
    return toy_models.save_toy(tmp_path_factory.mktemp("served"), "llama", toy_models.byte_level_tokenizer())


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """The address of a server that is ready."""
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with vllm_server(folder, log, "--max-logprobs", "8", "--max-model-len", "200") as address:
        yield address


def test_a_real_server_gives_what_transformers_gives(server, folder):
    remote = OpenAIScorer(folder, 8, OpenAIEngine(base_url=server, concurrency=4))
    local = TransformersScorer(folder, 8, FLOAT32)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 600, length).astype(np.int32) for length in (40, 3, 90, 17, 199)]
    positions = [np.arange(1, len(row), 2) for row in rows]
    for theirs, ours in zip(remote.score(rows, positions), local.score(rows, positions), strict=True):
        np.testing.assert_allclose(theirs.real_logprobs_T, ours.real_logprobs_T, atol=1e-4)
        kept = theirs.ids_TK >= 0
        assert kept.mean() > 0.95  # The server also counts rows that pad the output head among its top 8.
        for t in range(len(ours)):
            expected = dict(zip(ours.ids_TK[t].tolist(), ours.logprobs_TK[t].tolist(), strict=True))
            for token, logprob in zip(theirs.ids_TK[t][kept[t]], theirs.logprobs_TK[t][kept[t]], strict=True):
                assert expected[int(token)] == pytest.approx(logprob, abs=1e-4)


def test_a_sequence_longer_than_the_server_reads_is_its_own_words(server, folder):
    remote = OpenAIScorer(folder, 8, OpenAIEngine(base_url=server))
    with pytest.raises(EngineError, match=r"HTTP 400: .*200"):
        remote.score([np.zeros(210, dtype=np.int32)], [np.array([209])])


def test_a_k_that_the_server_does_not_allow_is_an_error(server, folder):
    remote = OpenAIScorer(folder, 9, OpenAIEngine(base_url=server))
    with pytest.raises(EngineError, match=r"HTTP 400: .*--max-logprobs 9"):
        remote.score([np.zeros(10, dtype=np.int32)], [np.array([5])])
