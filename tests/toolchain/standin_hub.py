"""A hub on this machine: folders of repositories, answered as huggingface.co answers its clients for reading."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with `root`/models/ORG/NAME and `root`/datasets/ORG/NAME, and what it is asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": root, "asked": asked}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        asked = urlsplit(self.path)
        path = unquote(asked.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"{self.command} {path}")
        if (found := API.fullmatch(path)) and (folder := self.root / found[1] / found[2]).is_dir():
            _, name, what, _, below = found.groups()
            if what == "tree":
                return self._json(_tree(folder, below or "", "recursive" in parse_qs(asked.query)))
            if what == "paths-info":
                paths = json.loads(body)["paths"] if b"{" in body[:1] else parse_qs(body.decode())["paths"]
                return self._json([_entry(folder, folder / p) for p in paths if (folder / p).exists()])
            files = [
                {"rfilename": str(f.relative_to(folder))} for f in sorted(folder.rglob("*")) if f.is_file()
            ]
            about = {
                "id": name,
                "sha": COMMIT,
                "siblings": files,
                "private": False,
                "gated": False,
                "tags": [],
            }
            return self._json({**about, "disabled": False, "downloads": 0, "likes": 0, "lastModified": None})
        if found := FILE.fullmatch(path):
            file = self.root / (found[1] or "models") / found[2] / found[4]
            if file.is_file():
                return self._send(file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})
            if (self.root / (found[1] or "models") / found[2]).is_dir():
                return self._send(b"Entry not found", {"X-Error-Code": "EntryNotFound"}, 404)
        self._send(b"Repository not found", {"X-Error-Code": "RepoNotFound"}, 404)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree(folder: Path, below: str, recursive: bool) -> list[dict]:
    start = folder / below
    return [_entry(folder, path) for path in sorted(start.rglob("*") if recursive else start.glob("*"))]


def _entry(folder: Path, path: Path) -> dict:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}
