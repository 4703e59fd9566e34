"""Pushing a model: nothing goes out without --yes, and the token shows nowhere."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_plantedplantedplantedplantedplanted"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as a push looks at it."""
    merged = tmp_path / "run" / "5_merged"
    merged.mkdir(parents=True)
    card = "---\nbase_model:\n- ./models/pivot\n- org/name\n---\n\nSee https://example.org/a/b and and/or.\n"
    for name, text in {
        "config.json": "{}", "model.safetensors": "weights", "README.md": card, "MANIFEST.json": "{}", ".hidden": "x",
    }.items():  # fmt: skip
        (merged / name).write_text(text)
    return tmp_path / "run"


@pytest.fixture
def hub() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Speaks as much of the Hub's protocol as one commit of small files needs; gives its address and the requests."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            asked.append({"path": self.path, "body": body, "token": self.headers.get("Authorization")})
            if "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                answer: dict[str, Any] = {
                    "files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                }
            elif "/commit/" in self.path:
                answer = {
                    "commitUrl": f"http://{self.headers['Host']}/user/name/commit/1",
                    "commitOid": "1",
                    "pullRequestUrl": None,
                }
            else:
                answer = {"url": f"http://{self.headers['Host']}/user/name", "errors": [], "warnings": []}
            self.reply(answer)

        def do_GET(self) -> None:
            asked.append({"path": self.path, "body": "", "token": self.headers.get("Authorization")})
            self.reply({"id": "user/name", "sha": "0", "siblings": [], "private": True, "tags": []})

        def reply(self, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def command(run: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own: the Hub's client reads its address when it is imported."""
    home = run.parent / "cache"
    home.mkdir(exist_ok=True)
    # The Hub's client fetches a public list of its own, without a token, where it has none of the day.
    (home / Path(constants.AGENT_HARNESSES_PATH).name).write_text('{"standardEnvVars": [], "harnesses": {}}')
    ours = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(home)}
    environment = {**os.environ, **ours, **variables}
    line = [sys.executable, "-m", "fusion_ray", "push", str(run), "--repo", "user/name", *options]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_without_yes_files_and_sizes_are_listed_and_nothing_is_sent(
    run: Path, hub: tuple[str, list[dict[str, Any]]]
) -> None:
    done = command(run, HF_ENDPOINT=hub[0], HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors      7" in done.stdout and "Nothing was sent" in done.stdout
    assert "MANIFEST.json" not in done.stdout and ".hidden" not in done.stdout
    assert "folders of this machine: ./models/pivot." in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert hub[1] == []


def test_with_yes_the_listed_files_go_out_as_one_commit_and_the_token_shows_nowhere(
    run: Path, hub: tuple[str, list[dict[str, Any]]]
) -> None:
    done = command(run, "--yes", HF_ENDPOINT=hub[0], HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"Sent: {hub[0]}/user/name/commit/1" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    (commit,) = [request for request in hub[1] if "/commit/" in request["path"]]
    assert commit["path"].startswith("/api/models/user/name/commit/main")
    values = [line["value"] for line in map(json.loads, commit["body"].splitlines()) if line["key"] == "file"]
    sent = {value["path"]: base64.b64decode(value["content"]) for value in values}
    merged = run / "5_merged"
    assert sent == {name: (merged / name).read_bytes() for name in ("README.md", "config.json", "model.safetensors")}
    assert all(request["token"] == f"Bearer {TOKEN}" for request in hub[1])
    assert all(TOKEN not in request["body"] + request["path"] for request in hub[1])


def test_without_a_token_or_a_hub_there_is_one_clear_message(run: Path) -> None:
    missing = command(run, "--yes", HF_TOKEN="")
    assert missing.returncode == 2 and "HF_TOKEN is not set" in missing.stderr
    # Port 9 discards; nothing listens there.
    gone = command(run, "--yes", HF_TOKEN=TOKEN, HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.returncode == 1 and "could not be written" in gone.stderr
    assert "Traceback" not in gone.stderr and TOKEN not in gone.stdout + gone.stderr
