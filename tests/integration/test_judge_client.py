"""The judge's client against a server on loopback: nothing asked twice, no key shown, failures named."""

from pathlib import Path
from typing import Any

import pytest
from toys.loopback import serving

from fusion_ray.errors import EngineError
from fusion_ray.recipe import Judge
from fusion_ray.report.judge_client import JudgeClient

CHAT = [{"role": "user", "content": "which?"}]


def reply(text: str) -> dict[str, Any]:
    """An answer as servers give it."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def judge_at(url: str, **changes: Any) -> Judge:
    return Judge.model_validate({"base_url": url, "model": "judge", "questions": "q.jsonl", "retries": 0} | changes)


def test_replies_are_kept_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": str(n)}] for n in range(5)]
    with serving(answer=lambda request: reply(request["messages"][0]["content"])) as (url, asked):
        judge = judge_at(url, usd_per_million_input_tokens=2.0, usd_per_million_output_tokens=10.0)
        client = JudgeClient(judge, str(tmp_path / "replies"))
        first = client.ask(chats)
        files = {path: path.read_bytes() for path in (tmp_path / "replies").iterdir()}
        next(iter(files)).unlink()
        again = JudgeClient(judge, str(tmp_path / "replies")).ask(chats)
    assert len(asked) == 6 and first == again
    assert [r.text for r in first] == list("01234")
    assert {path: path.read_bytes() for path in (tmp_path / "replies").iterdir()} == files
    assert client.usd(first) == pytest.approx((500 * 2 + 50 * 10) / 1e6)


def test_an_interrupted_judging_goes_on_where_it_stopped(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": str(n)}] for n in range(4)]
    with serving(answer=lambda _: reply("[[5]]")) as (url, asked):
        JudgeClient(judge_at(url, concurrency=1), str(tmp_path)).ask(chats[:2])
        with serving([401]) as (refusing, _), pytest.raises(EngineError, match=r"HTTP 401.*Replies so far are kept"):
            JudgeClient(judge_at(refusing, concurrency=1), str(tmp_path)).ask(chats)
        assert len(JudgeClient(judge_at(url), str(tmp_path)).ask(chats)) == 4
    assert len(asked) == 4


def test_the_key_comes_from_the_environment_and_never_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sk-planted")
    with serving([400], answer=lambda _: reply("")) as (url, _):
        url = url.replace("/v1", "/sk-planted/v1")
        client = JudgeClient(judge_at(url, api_key_variable="THE_KEY"), str(tmp_path))
        with pytest.raises(EngineError) as caught:
            client.ask([CHAT])
        client.ask([CHAT])
    assert "sk-planted" not in str(caught.value) and "***" in str(caught.value)
    assert all(b"sk-planted" not in path.read_bytes() for path in tmp_path.iterdir())


def test_options_reach_the_server_and_null_takes_a_field_out(tmp_path: Path) -> None:
    with serving(answer=lambda _: reply("")) as (url, asked):
        options = {"max_tokens": None, "max_completion_tokens": 7, "seed": 1}
        JudgeClient(judge_at(url, options=options), str(tmp_path)).ask([CHAT])
    assert asked == [
        {"model": "judge", "messages": CHAT, "temperature": 0, "max_completion_tokens": 7, "seed": 1},
    ]


def test_an_answer_that_is_no_chat_completion_is_an_error(tmp_path: Path) -> None:
    with serving(answer=lambda _: {"choices": []}) as (url, _), pytest.raises(EngineError, match="no choices"):
        JudgeClient(judge_at(url), str(tmp_path)).ask([CHAT])
