"""A judge behind a server: asked once for each question, its replies kept on disk, its tokens counted."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fusion_ray.errors import EngineError
from fusion_ray.models.server import Server
from fusion_ray.recipe import Judge
from fusion_ray.report.judge_prompts import Messages
from fusion_ray.report.kept import keep, read_kept
from fusion_ray.storage.filesystem import join


class Reply(NamedTuple):
    """What the judge wrote, and what the server says it cost."""

    text: str
    input_tokens: int
    output_tokens: int


class JudgeClient:
    """Asks the recipe's judge.

    A reply is kept under the hash of its request, in a file of its own that is there whole or not at all: a run that
    was stopped asks only for what is missing, and the same questions give the same bytes.

    Args:
        settings: The recipe's judge section.
        folder: Where replies are kept.
    """

    def __init__(self, settings: Judge, folder: str) -> None:
        self._settings, self._folder = settings, folder
        self._server = Server(
            settings.base_url,
            timeout_s=settings.timeout_s,
            retries=settings.retries,
            key_variable=settings.api_key_variable,
            hint="Check judge.base_url and judge.model, that the server runs and reads conversations this long, and "
            f"that {settings.api_key_variable} holds its key where it wants one. Replies so far are kept.",
        )

    def ask(self, chats: Sequence[Messages], told: Callable[[int], None] = lambda _: None) -> list[Reply]:
        """The reply to every chat, in order.

        Args:
            chats: What to ask.
            told: Called with the number of replies so far.

        Raises:
            EngineError: The server refused a request or failed for good.
        """
        replies: list[Reply] = []
        with ThreadPoolExecutor(max_workers=self._settings.concurrency) as pool:
            try:
                for reply in pool.map(self._ask_once, chats):
                    replies.append(reply)
                    told(len(replies))
            except BaseException:  # Ctrl-C too: requests that are still waiting are cancelled.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return replies

    def _ask_once(self, chat: Messages) -> Reply:
        request = self.request(chat)
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        uri = join(self._folder, f"{key[:32]}.json")
        kept = read_kept(uri, key)
        if kept is not None:
            return Reply(**kept["reply"])
        reply = self._read(self._server.ask("chat/completions", request))
        keep(uri, key, {"request": request, "reply": reply._asdict()})
        return reply

    def request(self, chat: Messages) -> dict[str, Any]:
        """The body of the request; an option of the recipe that is null removes a field."""
        settings = self._settings
        body = {"model": settings.model, "messages": chat, "temperature": 0, "max_tokens": settings.judgment_tokens}
        return {name: value for name, value in (body | settings.options).items() if value is not None}

    def _read(self, answer: dict[str, Any]) -> Reply:
        try:
            text = answer["choices"][0]["message"]["content"] or ""
            usage = answer.get("usage") or {}
            return Reply(str(text), int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(
                f"{self._server.base_url}: its answer has no choices[0].message.content ({error!r}). Expected OpenAI's "
                "chat completions."
            ) from error

    def usd(self, replies: Sequence[Reply]) -> float | None:
        """What the replies cost by the recipe's prices, None where it names none."""
        prices = self._settings.usd_per_million_input_tokens, self._settings.usd_per_million_output_tokens
        if prices == (None, None):
            return None
        sums = sum(r.input_tokens for r in replies), sum(r.output_tokens for r in replies)
        return sum((price or 0.0) * tokens / 1e6 for price, tokens in zip(prices, sums, strict=True))
