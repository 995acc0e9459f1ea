"""A Hugging Face Hub on the loopback interface: as much of its API as fetching a model takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?$")
FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)$")


class Hub:
    """Models by name: their commits by branch, and the files of each commit. `asked` are the paths of all requests."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []

    def add(self, name: str, branch: str, files: dict[str, bytes]) -> str:
        """Put the files on a branch; returns their commit."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.branches.setdefault(name, {})[branch] = commit
        self.files[commit] = files
        return commit

    def commit(self, name: str, revision: str) -> str | None:
        """The commit that a branch or a commit's own name is at."""
        branches = self.branches[name]
        return branches.get(revision) or (revision if revision in branches.values() else None)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve it; gives the address."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        api, file = API.match(path), FILE.match(path)
        name = (api or file)[1] if api or file else ""
        if name in self.hub.gated:
            return self._say(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "agree first"})
        if name not in self.hub.branches:
            return self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.commit(name, (api[3] or "main") if api else file[2])
        if commit is None:
            return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.files[commit]
        if file:
            content = files[file[3]]
            seal = hashlib.sha256(content).hexdigest()
            return self._say(200, content, {"ETag": f'"{seal}"', "X-Repo-Commit": commit})
        if api[2] == "tree":
            told = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
        else:
            told = {"id": name, "sha": commit, "siblings": [{"rfilename": n} for n in files]}
        return self._say(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
