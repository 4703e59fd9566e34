"""Object stores on loopback that now and then refuse a request, as real ones do; each a process of its own.

`s3` is moto's server. `gs` is an emulator of Google's JSON API, to which Google's own client in pyarrow is led by its
variable CLOUD_STORAGE_EMULATOR_ENDPOINT; a token it fetches there with the credentials that the environment names.
"""

import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

BUCKET = "bucket"
KEY = "AKIATOYKEYOFNOBODY00"
SECRET = "toy-secret-that-must-never-be-written-anywhere"
TOKEN = "toy-token-that-must-never-be-written-anywhere"
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_EC2_METADATA_DISABLED",
)
_COUNTS = "/toy-counts"
_TOKEN = "/toy-token"


class Counts(NamedTuple):
    """Requests that the server got, and how many of them it refused."""

    asked: int
    refused: int


class Store(NamedTuple):
    """A running server, and all that a client needs: credentials come from the environment and from nowhere else.

    Attributes:
        root: URI of its one bucket.
    """

    address: str
    root: str
    environment: dict[str, str]

    def counts(self) -> Counts:
        with urllib.request.urlopen(self.address + _COUNTS) as answer:
            return Counts(**json.load(answer))


@contextmanager
def object_store(refuse_every: int = 0, kind: str = "s3") -> Iterator[Store]:
    """A server with one empty bucket; its variables are set in this process for the time of the block.

    Args:
        refuse_every: Every so many requests one is answered with 503; 0 for never.
        kind: `s3` or `gs`.
    """
    command = [sys.executable, "-W", "ignore", __file__, kind, str(refuse_every)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        variables = _amazons(address) if kind == "s3" else _googles(address, Path(folder, "credentials.json"))
        os.environ.update(variables)
        try:
            if kind == "s3":
                import boto3

                boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
            yield Store(address, f"{kind}://{BUCKET}", variables)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            for name in variables:
                os.environ.pop(name, None)
                os.environ.update({name: before[name]} if name in before else {})


def _amazons(address: str) -> dict[str, str]:
    return dict(zip(VARIABLES, (KEY, SECRET, "us-east-1", address, "true"), strict=True))


def _googles(address: str, file: Path) -> dict[str, str]:
    user = {"type": "authorized_user", "client_id": "toy", "client_secret": SECRET, "refresh_token": KEY}
    file.write_text(json.dumps(user | {"token_uri": address + _TOKEN}))
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(file), "CLOUD_STORAGE_EMULATOR_ENDPOINT": address}


class Doorkeeper:
    """Counts requests and says which to refuse."""

    def __init__(self, refuse_every: int) -> None:
        self.refuse_every, self.lock = refuse_every, threading.Lock()
        self.counts = {"asked": 0, "refused": 0}

    def refuses(self) -> bool:
        with self.lock:
            self.counts["asked"] += 1
            refuse = bool(self.refuse_every) and self.counts["asked"] % self.refuse_every == 0
            self.counts["refused"] += refuse
        return refuse


def serve_s3(door: Doorkeeper) -> None:
    """Answer until killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == _COUNTS:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(door.counts).encode()]
        if not door.refuses():
            return application(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def serve_gs(door: Doorkeeper) -> None:
    """Answer until killed; whoever asks without a token of ours is turned away."""
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class Handler(RequestHandler):
        def say(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def pass_on(self, handle: Callable[["Handler"], None]) -> None:
            if self.path == _COUNTS:
                self.say(200, door.counts)
            elif self.path == _TOKEN:
                self.say(200, {"access_token": TOKEN, "token_type": "Bearer", "id_token": "", "expires_in": 3600})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.say(401, {"error": {"code": 401, "message": "no credentials"}})
            elif self.command != "PUT" and door.refuses():  # The emulator cannot go on with an upload that it refused.
                self.say(503, {"error": {"code": 503, "message": "Reduce your request rate."}})
            else:
                client, self.wfile = self.wfile, io.BytesIO()
                with lock:  # Not while the client reads: it may first want an answer to something else.
                    handle(self)
                answer, self.wfile = self.wfile.getvalue(), client
                self.wfile.write(answer)

        def do_GET(self) -> None:
            self.pass_on(RequestHandler.do_GET)

        def do_POST(self) -> None:
            self.pass_on(RequestHandler.do_POST)

        def do_PUT(self) -> None:
            self.pass_on(RequestHandler.do_PUT)

        def do_DELETE(self) -> None:
            self.pass_on(RequestHandler.do_DELETE)

        def do_PATCH(self) -> None:
            self.pass_on(RequestHandler.do_PATCH)

    storage, lock = Storage(use_memory_fs=True), threading.Lock()
    create_bucket(BUCKET, storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    {"s3": serve_s3, "gs": serve_gs}[sys.argv[1]](Doorkeeper(int(sys.argv[2])))
