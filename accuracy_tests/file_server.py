"""A server of files on this machine, for tests of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread


class Server(HTTPServer):
    """Serves one content, or files by name, badly if asked to."""

    content = b""  # of every file not in `files`
    ranges = True  # whether it honors a range
    stop_after: int | None = None  # bytes after which the connection ends
    status: int | None = None  # answers this instead

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}  # by path, without the first /
        self.asked: list[str | None] = []  # the range of each request
        self.paths: list[str] = []  # the path of each request, likewise

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the server is set to."""

    server: Server

    def do_GET(self) -> None:
        """Sends the content, or the range asked for."""
        server, path = self.server, self.path[1:]
        asked = self.headers.get("Range")
        server.asked.append(asked)
        server.paths.append(path)
        content = server.files.get(path, server.content)
        start = int(asked.split("=")[1].rstrip("-")) if asked and server.ranges else 0
        if server.status is not None or (start and start >= len(content)):
            self.send_error(server.status or 416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


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
    """An address where nobody answers."""
    with Server() as closed:
        return closed.address
