"""A small model hub on the loopback: the two requests that a download makes, and a bad line.

Answers `GET /api/models/OWNER/NAME/revision/REV` and `GET /OWNER/NAME/resolve/COMMIT/FILE` with
ranges, as https://huggingface.co does.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny-model"


@dataclass
class Hub:
    """One repository served from a directory. `cut_at` ends the body of the named file after so
    many bytes, once for every entry; `gated` answers 403; `flip` damages the named file.
    """

    directory: Path
    url: str = ""
    cut_at: dict[str, list[int]] = field(default_factory=dict)
    gated: bool = False
    flip: str | None = None
    endless: str | None = None  # this file has more bytes than were announced
    drip: str | None = None  # this file comes a byte at a time
    change: dict[str, Any] = field(default_factory=dict)  # of every entry of the list
    knows_ranges: bool = True
    elsewhere: str | None = None  # files are there: a redirect
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: dict[str, str | None] = field(default_factory=dict)

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.directory.rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                entry: dict[str, Any] = {
                    "rfilename": str(path.relative_to(self.directory)),
                    "size": len(data),
                    "blobId": hashlib.sha1(data).hexdigest(),
                }
                if path.suffix == ".safetensors":
                    digest = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
                siblings.append({**entry, **self.change})
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of the loopback while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.tokens[path] = self.headers.get("Authorization")
            hub.requests.append((path, self.headers.get("Range")))
            prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
            if path.startswith(f"/api/models/{REPOSITORY}/revision/"):
                self.list_repository(path.rpartition("/")[2])
            elif path.startswith(prefix) and hub.elsewhere:
                self.answer(302, b"", {"Location": hub.elsewhere + self.path})
            elif path.startswith(prefix) and (hub.directory / path[len(prefix) :]).is_file():
                self.send_part(path[len(prefix) :])
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def list_repository(self, revision: str) -> None:
            if hub.gated:
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif revision not in ("main", COMMIT):
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(200, json.dumps(hub.listing()).encode())

        def send_part(self, name: str) -> None:
            data = (hub.directory / name).read_bytes()
            if hub.flip == name:
                data = data[:-1] + bytes([data[-1] ^ 1])
            wanted = self.headers.get("Range") if hub.knows_ranges else None
            first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
            start = int(first)
            body = data[start : int(last) + 1 if last else len(data)]
            if hub.endless == name:
                body += b"x" * 100
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            if wanted:
                end = start + len(body) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            self.end_headers()
            if hub.drip == name:
                for byte in body[:100]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
                self.close_connection = True
            elif hub.cut_at.get(name):
                self.wfile.write(body[: hub.cut_at[name].pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
