"""A server on loopback that answers JSON, and fails in all the ways that servers do."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(
    failures: Sequence[int | str] = (), answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {}
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers the first requests with the given failures; gives its address and what it was asked."""
    asked: list[dict[str, Any]] = []
    left = list(failures)

    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def do_GET(self):
            self.reply(200, {"data": [{"id": "first"}, {"id": "second"}]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(request)
            failure = left.pop(0) if left else None
            if failure == "hang up":
                self.close_connection = True
            elif failure is not None:
                self.reply(failure, {"message": "no"})
            else:
                self.reply(200, answer(request))

        def reply(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
