"""A real HTTP server on the loopback that misbehaves as asked: drops connections, ignores ranges, changes its file."""

from __future__ import annotations

import hashlib
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer


@dataclass
class Plan:
    """How requests are answered. `drops` is used up from the front: bytes after which a connection is cut."""

    content: bytes = b""
    ranges: bool = True
    etag: bool = True
    length: bool = True
    content_type: str = "application/octet-stream"
    drops: list[int] = field(default_factory=list)
    statuses: list[int] = field(
        default_factory=list
    )  # answers before the file is given, used up from the front
    bytes_per_s: float | None = None
    after_drop: bytes | None = None  # the file is another one after the first dropped connection
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)  # (path, range, bytes to send)


@contextmanager
def serving(plan: Plan) -> Iterator[str]:
    """Serve `plan` while the block runs; yields the server's address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            if plan.statuses:
                plan.requests.append((self.path, asked, 0))
                self.send_error(plan.statuses.pop(0))
                return
            content = plan.content
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            start = 0
            if asked and plan.ranges and self.headers.get("If-Range") in (None, tag):
                start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
                if start >= len(content):
                    plan.requests.append((self.path, asked, 0))
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Type", plan.content_type)
            if plan.etag:
                self.send_header("ETag", tag)
            if plan.length:
                self.send_header("Content-Length", str(len(content) - start))
            else:
                self.close_connection = True
                self.send_header("Connection", "close")
            body = content[start:]
            cut = plan.drops.pop(0) if plan.drops else None
            if cut is not None:
                body = body[:cut]
                plan.content = content if plan.after_drop is None else plan.after_drop
                self.close_connection = True
            plan.requests.append((self.path, asked, len(body)))
            self.end_headers()  # sends the headers; from here on the client may be done before this thread goes on
            self._send(body)

        def _send(self, body: bytes) -> None:
            step = len(body) or 1 if plan.bytes_per_s is None else max(1, int(plan.bytes_per_s / 50))
            for i in range(0, len(body), step):
                try:
                    self.wfile.write(body[i : i + step])
                except OSError:  # the client has gone
                    return
                if plan.bytes_per_s is not None:
                    time.sleep(step / plan.bytes_per_s)

        def log_message(self, *args: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, HTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
