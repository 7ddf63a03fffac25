"""A local HTTP server of files, for tests of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread


class Server(HTTPServer):
    """Serves one content, or files by name, and fails in the way that is set."""

    content = b""  # of every path not in `files`
    stop_after: int | None = None  # bytes after which the connection ends
    status: int | None = None  # sent instead of the content

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}  # by path, without the first /
        self.paths: list[str] = []  # the path of each request

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the server is set to."""

    server: Server

    def do_GET(self) -> None:
        """Sends the content."""
        server, path = self.server, self.path[1:]
        server.paths.append(path)
        if server.status is not None:
            self.send_error(server.status)
            return
        body = server.files.get(path, server.content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])

    def log_message(self, *_: object) -> None:
        """Keeps standard error clean."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers until the end of the block."""
    with Server() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def closed_address() -> str:
    """An address at which no server listens."""
    with Server() as closed:
        return closed.address
