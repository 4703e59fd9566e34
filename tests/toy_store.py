"""An S3 server on loopback that now and then refuses a request, as real ones do; a process of its own."""

import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

BUCKET = "bucket"
KEY = "AKIATOYKEYOFNOBODY00"
SECRET = "toy-secret-that-must-never-be-written-anywhere"
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_EC2_METADATA_DISABLED",
)
_COUNTS = "/toy-counts"


class Counts(NamedTuple):
    """Requests that the server got, and how many of them it refused."""

    asked: int
    refused: int


class Store(NamedTuple):
    """A running server, and all that a client needs: credentials come from the environment and from nowhere else."""

    address: str

    @property
    def environment(self) -> dict[str, str]:
        return dict(zip(VARIABLES, (KEY, SECRET, "us-east-1", self.address, "true"), strict=True))

    def counts(self) -> Counts:
        with urllib.request.urlopen(self.address + _COUNTS) as answer:
            return Counts(**json.load(answer))


@contextmanager
def object_store(refuse_every: int = 0) -> Iterator[Store]:
    """A server with one empty bucket; its variables are set in this process for the time of the block.

    Args:
        refuse_every: Every so many requests one is answered with 503; 0 for never.
    """
    import boto3

    command = [sys.executable, "-W", "ignore", __file__, str(refuse_every)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    store = Store(process.stdout.readline().strip())
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(store.environment)
    try:
        boto3.client("s3", endpoint_url=store.address).create_bucket(Bucket=BUCKET)
        yield store
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def serve(refuse_every: int) -> None:
    """Answer until killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
    counts = {"asked": 0, "refused": 0}

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == _COUNTS:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(counts).encode()]
        with lock:
            counts["asked"] += 1
            refuse = bool(refuse_every) and counts["asked"] % refuse_every == 0
            counts["refused"] += refuse
        if not refuse:
            return application(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
