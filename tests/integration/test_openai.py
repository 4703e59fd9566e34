"""The remote scorer and generator against a server on loopback that fails in all the ways servers do."""

from typing import Any

import numpy as np
import pytest
import toys.models as toy_models
from toys.loopback import serving

from fusion_ray.errors import EngineError
from fusion_ray.models.generator import Completion
from fusion_ray.models.openai import OpenAIScorer
from fusion_ray.models.opening import make_generator, make_scorer
from fusion_ray.recipe import OpenAIEngine

TOP = {"7": {"logprob": -0.5, "rank": 1}, "3": {"logprob": -1.5, "rank": 2}}


def answer_for(request: dict) -> dict:
    """Every position: 7, then 3; the token that came last unless it is one of them."""
    entries = [{str(token): {"logprob": -9.0, "rank": 50}} | TOP for token in request["prompt"]]
    return {"choices": [{"prompt_logprobs": [None, *entries[1:]]}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer only."""
    path = tmp_path_factory.mktemp("tokenizer")
    toy_models.byte_level_tokenizer().save_pretrained(path)
    return str(path)


def scorer_for(folder: str, url: str, **changes) -> OpenAIScorer:
    return OpenAIScorer(folder, 2, OpenAIEngine(base_url=url, **{"retries": 3, **changes}), first_wait_s=0.001)


def test_answers_are_read_at_the_positions_asked_for(folder):
    with serving(answer=answer_for) as (url, asked):
        ids = [np.array([5, 7, 9, 9, 1], dtype=np.int32), np.array([4, 4], dtype=np.int32)]
        one, none = scorer_for(folder, url).score(ids, [np.array([1, 3]), np.array([], dtype=np.int64)])
    assert one.ids_TK.tolist() == [[7, 3], [7, 3]]
    np.testing.assert_allclose(one.logprobs_TK, [[-0.5, -1.5]] * 2)
    np.testing.assert_allclose(one.real_logprobs_T, [-0.5, -9.0])
    assert len(none) == 0 and len(asked) == 1
    assert asked[0]["prompt"] == [5, 7, 9, 9] and asked[0]["prompt_logprobs"] == 2 and asked[0]["model"] == "first"


def test_many_requests_come_back_in_their_order(folder):
    with serving(answer=answer_for) as (url, _):
        ids = [np.array([1, token], dtype=np.int32) for token in range(40)]
        results = scorer_for(folder, url, concurrency=8).score(ids, [np.array([1])] * 40)
    assert [float(result.real_logprobs_T[0]) for result in results] == [
        {7: -0.5, 3: -1.5}.get(token, -9.0) for token in range(40)
    ]


@pytest.mark.parametrize("failures", [[503], [429, 500, 502], ["hang up", 503]])
def test_a_passing_failure_is_tried_again(folder, failures):
    with serving(failures, answer_for) as (url, asked):
        (result,) = scorer_for(folder, url).score([np.array([1, 7])], [np.array([1])])
    assert len(asked) == len(failures) + 1 and float(result.real_logprobs_T[0]) == -0.5


def test_a_lasting_failure_is_an_error_after_the_last_try(folder):
    with (
        serving([503] * 10, answer_for) as (url, asked),
        pytest.raises(EngineError, match=r"HTTP 503: .*after 4 tries"),
    ):
        scorer_for(folder, url).score([np.array([1, 7])], [np.array([1])])
    assert len(asked) == 4


def test_a_refusal_is_final_and_shown(folder):
    with (
        serving([400], answer_for) as (url, asked),
        pytest.raises(EngineError, match=r'HTTP 400: .*"no".*--max-logprobs 2'),
    ):
        scorer_for(folder, url).score([np.array([1, 7])], [np.array([1])])
    assert len(asked) == 1


def test_a_server_without_prompt_logprobs_is_an_error(folder):
    message = "without prompt_logprobs for each of 2 tokens"
    no_logprobs = serving(answer=lambda _: {"choices": [{"text": "x"}]})
    with no_logprobs as (url, _), pytest.raises(EngineError, match=message):
        scorer_for(folder, url).score([np.array([1, 7])], [np.array([1])])


def test_a_model_that_is_not_served_is_named_with_those_that_are(folder):
    with (
        serving(answer=answer_for) as (url, _),
        pytest.raises(EngineError, match="serves first, second, and 'third' was asked for"),
    ):
        scorer_for(folder, url, served_model="third")


def test_a_server_that_is_not_there_is_named(folder):
    with serving(answer=answer_for) as (url, _):
        pass
    with pytest.raises(EngineError, match=r"/v1/models: .*after 1 tries"):
        scorer_for(folder, url, retries=0)


def test_the_factory_reaches_the_server_of_the_recipe(folder):
    with serving(answer=answer_for) as (url, asked):
        scorer = make_scorer(OpenAIEngine(base_url=url, served_model="second"), folder, 2)
        scorer.score([np.array([1, 7])], [np.array([1])])
        scorer.close()
    assert asked[0]["model"] == "second"


def test_a_server_is_asked_with_temperature_and_seed_and_says_what_ended() -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"text": f"t{request['seed']}", "finish_reason": "stop" if request["seed"] else "length"}]}

    with serving(answer=answer) as (url, asked):
        generator = make_generator(OpenAIEngine(base_url=url), "")
        texts = generator.sample(
            [np.array([1]), np.array([2])], max_tokens=5, end_ids=[9], temperature=0.7, seeds=[0, 4]
        )
        generator.close()
    assert texts == [Completion("t0", False), Completion("t4", True)]
    assert {(r["temperature"], r["max_tokens"], tuple(r["stop_token_ids"])) for r in asked} == {(0.7, 5, (9,))}


@pytest.mark.parametrize(
    ("ranks", "ids"),
    [
        ((1, 2, 3), [7, 3]),  # The real token comes third, beyond the two that are kept.
        ((1, 3, 2), [7, 5]),  # It is one of the two itself.
        ((None, None, None), [7, 3]),
    ],
)
def test_the_real_token_is_kept_only_where_it_is_among_the_most_probable(folder, ranks, ids):
    nats = {7: -0.5, 3: -1.5, 5: -1.25 if ranks[2] == 2 else -2.5}
    entry = {
        str(token): {"logprob": value} | ({} if rank is None else {"rank": rank})
        for (token, value), rank in zip(nats.items(), ranks, strict=True)
    }
    with serving(answer=lambda _: {"choices": [{"prompt_logprobs": [None, entry]}]}) as (url, _):
        (found,) = scorer_for(folder, url).score([np.array([1, 5], dtype=np.int32)], [np.array([1])])
    assert (found.ids_TK.tolist(), found.real_logprobs_T.tolist()) == ([ids], [nats[5]])
    assert found.logprobs_TK.tolist() == [[nats[token] for token in ids]]


def test_places_that_the_server_does_not_fill_are_unused(folder):
    entry = {"5": {"logprob": -0.5, "rank": 1}, "600": {"logprob": -1.0, "rank": 2}}  # The tokenizer ends at 599.
    with serving(answer=lambda _: {"choices": [{"prompt_logprobs": [None, entry]}]}) as (url, _):
        (found,) = scorer_for(folder, url).score([np.array([1, 5], dtype=np.int32)], [np.array([1])])
    assert (found.ids_TK.tolist(), found.logprobs_TK.tolist()) == ([[5, -1]], [[-0.5, -np.inf]])
