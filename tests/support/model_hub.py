"""A model hub on this machine: as much of the Hugging Face hub's interface as downloading a checkpoint takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/?]+)(/revision/(?P<revision>[^/?]+))?(\?.*)?")
TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/(?P<name>[^?]+)(\?.*)?")


@dataclass
class Hub:
    """What is stored: by repository the folders of its revisions. `requests` are those it has answered."""

    repositories: dict[str, dict[str, Path]]
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def commit(self, repo: str, revision: str) -> str:
        """A commit hash, which has to look like one."""
        return hashlib.sha1(f"{repo}@{self.repositories[repo][revision]}".encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a GET."""
        kind = RESOLVE.fullmatch(path) or TREE.fullmatch(path) or INFO.fullmatch(path)
        if kind is None or kind["repo"] not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        repo, revision = kind["repo"], kind["revision"] or "main"
        known = self.repositories[repo]
        # A client that has learned the commit asks for that from then on.
        revision = next((name for name in known if revision in (name, self.commit(repo, name))), revision)
        if revision not in known:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit, folder = self.commit(repo, revision), known[revision]
        if kind.re is INFO:
            files = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(folder.iterdir())]
            return 200, {}, json.dumps({"id": repo, "sha": commit, "siblings": files}).encode()
        file = folder / kind["name"]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content = file.read_bytes()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content


@contextmanager
def hub(repositories: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    """A hub that serves these until the block ends."""
    stored = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = stored.answer(self.path)
            stored.requests.append(f"{self.command} {self.path} {status}")
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  (the name is http.server's)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stored.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield stored
        finally:
            server.shutdown()
