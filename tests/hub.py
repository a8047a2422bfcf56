"""A hub of our own on the loopback: the real client downloads from it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0" * 40


class Handler(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.tell(parts[2:], body=body)
        elif "resolve" in parts:
            place = parts.index("resolve")
            self.give(self.root.joinpath(*parts[:place], *parts[place + 2 :]), body=body)
        else:
            self.refuse()

    def tell(self, parts: list[str], *, body: bool) -> None:
        """/api/models/org/name[/revision/REV | /tree/REV]"""
        folder = self.root.joinpath(*parts[:2])
        if not folder.is_dir():
            return self.refuse()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if "tree" in parts:
            rows = [
                {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": "0"}
                for path in files
            ]
            return self.send(json.dumps(rows).encode(), body=body)
        siblings = [
            {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": "0"}
            for path in files
        ]
        about = {"id": "/".join(parts[:2]), "sha": REVISION, "siblings": siblings, "private": False, "tags": []}
        return self.send(json.dumps(about).encode(), body=body)

    def give(self, path: Path, *, body: bool) -> None:
        if not path.is_file():
            return self.refuse(code="EntryNotFound")
        if body:
            self.asked.append(path.relative_to(self.root).as_posix())
        return self.send(path.read_bytes(), body=body)

    def refuse(self, code: str = "RepoNotFound") -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, the files that were downloaded); models lie as root/org/name."""
    handler = type("OurHandler", (Handler,), {"root": root, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
