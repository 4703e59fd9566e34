"""A client of OpenAI-compatible servers: transient failures are retried, and no key ever reaches a message."""

import json
import os
import random
import time
import urllib.error
import urllib.request
from typing import Any

from fusion_ray.errors import EngineError

# Statuses that are transient: overload, a restart, a proxy without its server. Every other one is final.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Server:
    """A server that speaks OpenAI's protocol.

    Transient failures are retried here and not by Ray, which would score the whole shard again for one of them.

    Args:
        base_url: Up to and with the version, such as `http://host:8000/v1`.
        timeout_s: Longest wait for one answer.
        retries: Further tries of one request.
        first_wait_s: Wait before the first retry; it doubles each time, with some jitter.
        key_variable: Environment variable that holds the key, where the server wants one.
        hint: What to check when it fails, for the message.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 120,
        retries: int = 5,
        first_wait_s: float = 0.5,
        key_variable: str = "OPENAI_API_KEY",
        hint: str = "Check that the server runs.",
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_s, self._retries, self._first_wait_s = timeout_s, retries, first_wait_s
        self._key_variable, self._hint = key_variable, hint

    def models(self) -> list[str]:
        """Names of the models that it serves."""
        return [str(model.get("id")) for model in self.ask("models").get("data", [])]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request, and send it again after a transient failure.

        Raises:
            EngineError: It was refused, or still failed at the last try.
        """
        reason = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._first_wait_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
            try:
                return self._send(path, body)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read()[:500].decode(errors='replace')}"
                if error.code not in _PASSING:
                    break
            except (OSError, json.JSONDecodeError) as error:  # refused, reset, timed out, cut short
                reason = f"{type(error).__name__}: {error}"
        else:
            reason += f" (after {self._retries + 1} tries)"
        raise EngineError(self._hide_key(f"{self.base_url}/{path}: {reason}. {self._hint}"))

    def _send(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_variable):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base_url}/{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
            parsed = json.loads(answer.read())
        return parsed if isinstance(parsed, dict) else {}

    def _hide_key(self, text: str) -> str:
        key = os.environ.get(self._key_variable)
        return text.replace(key, "***") if key else text
