"""A stand-in of the Hugging Face hub on loopback: the part of its API that huggingface_hub calls to publish and fetch.

Repositories with commits, tags and both kinds of upload (small files in the commit, weights and tables through LFS).
`Hub.refuse` makes requests fail; `Hub.before_commit` runs between a commit's checks and its effect.
"""

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_test"
LARGE = (".safetensors", ".parquet")


class Hub:
    def __init__(self) -> None:
        self.repos: dict[
            str, list[tuple[str, dict[str, bytes]]]
        ] = {}  # "models/ORG/NAME": (commit, files), oldest first
        self.tags: dict[str, dict[str, str]] = {}
        self.lfs: dict[str, bytes] = {}
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        self.before_commit: Callable[[], None] = lambda: None
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def create(self, repo: str) -> None:
        self.repos[repo] = []
        self.tags[repo] = {}
        self.commit(repo, {".gitattributes": b"*.safetensors filter=lfs"})

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        self.repos[repo].append((oid, files))
        return oid

    def head(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo][-1][1]

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos[repo]
        revision = self.tags[repo].get(revision, revision)
        return commits[-1] if revision == "main" else next((c for c in commits if c[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refused = self.state.refuse(self.command, path)
        if refused:
            self.send(refused, {"error": "refused"})
        elif self.command in ("POST", "PUT") and not self.may_write(path):
            self.send(401, {"error": "Invalid username or password."}, **{"X-Error-Message": "Invalid credentials"})
        elif path == "api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif path.startswith("lfs/"):
            self.state.lfs[path.removeprefix("lfs/")] = body
            self.send(200, {})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.lfs_batch(json.loads(body))
        elif path.startswith("api/"):
            _, kind, org, name, *rest = path.split("/")
            self.repository(f"{kind}/{org}/{name}", rest, body)
        else:
            self.resolve(path)

    def may_write(self, path: str) -> bool:
        return path.startswith("lfs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('type') or 'model'}s/{wanted['organization']}/{wanted['name']}"
        status = 409 if repo in self.state.repos else 200
        if status == 200:
            self.state.create(repo)
        self.send(status, {"url": f"{self.state.url}/{repo.removeprefix('models/')}"})

    def lfs_batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for item in asked["objects"]:
            missing = item["oid"] not in self.state.lfs
            actions = {"actions": {"upload": {"href": f"{self.state.url}/lfs/{item['oid']}"}}} if missing else {}
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def repository(self, repo: str, rest: list[str], body: bytes) -> None:
        action, revision = (rest + ["revision", "main"])[:2] if rest else ("revision", "main")
        if repo not in self.state.repos:
            return self.send(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        found = self.state.at(repo, revision)
        if found is None:
            return self.send(404, {"error": "Invalid rev"}, **{"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if action == "revision":
            return self.send(200, {"id": repo.split("/", 1)[1], "sha": commit, "private": False})
        if action == "tree":
            return self.send(200, [_entry(name, data) for name, data in files.items()])
        if action == "preupload":
            modes = [(f["path"], "lfs" if f["path"].endswith(LARGE) else "regular") for f in json.loads(body)["files"]]
            info = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]
            return self.send(200, {"files": info})
        if action == "tag":
            tag = json.loads(body)["tag"]
            if tag in self.state.tags[repo]:
                return self.send(409, {"error": "Tag reference exists already"})
            self.state.tags[repo][tag] = commit
            return self.send(200, {})
        if action == "commit":
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return self.send(404, {"error": f"the stand-in knows no {action}"})

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        self.state.before_commit()
        head, files = self.state.repos[repo][-1]
        if lines[0]["value"].get("parentCommit", head) != head:
            return self.send(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.lfs[value["oid"]]
            else:
                del files[value["path"]]
        oid = self.state.commit(repo, files)
        self.send(200, {"commitUrl": f"{self.state.url}/{repo}/commit/{oid}", "commitOid": oid})

    def resolve(self, path: str) -> None:
        head, _, tail = path.partition("/resolve/")
        repo = head if head.startswith("datasets/") else f"models/{head}"
        revision, _, name = tail.partition("/")
        found = self.state.at(repo, revision) if repo in self.state.repos else None
        if found is None:
            self.send(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
        elif name not in found[1]:
            self.send(404, {"error": "not found"}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
        else:
            data = found[1][name]
            self.send(200, data, **{"X-Repo-Commit": found[0], "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """A file in a repository's tree: with its content's git name, and its SHA-256 where it is large."""
    entry = {"type": "file", "path": name, "size": len(data)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty hub, with the environment that leads huggingface_hub to it."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the stand-in has no Xet storage
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
