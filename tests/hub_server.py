"""A small Hub on 127.0.0.1, kept in memory, for tests of pushing and loading without a network.

It speaks the part of the Hub's HTTP interface that `huggingface_hub`, `transformers` and `datasets` use to create
repositories, commit files, read them back and gather them in collections. Clients read `HF_ENDPOINT` when they are
imported, so talk to it from a child process started with `HubServer.environment(home)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml


TOKEN = "hf_token_of_the_tests"
USER = "tester"

_REPO = r"(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
_SLUG = r"(?P<slug>[^/]+/[^/]+)"
_FILE = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/{_REPO}/refs", "refs"),
    ("GET", rf"/api/{_REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", r"/api/collections", "list_collections"),
    ("POST", r"/api/collections", "create_collection"),
    ("GET", rf"/api/collections/{_SLUG}", "collection"),
    ("POST", rf"/api/collections/{_SLUG}/items", "add_item"),
    ("GET", _FILE, "file"),
]


class HubError(Exception):
    """An answer other than success; `code` goes into the header that clients make their exceptions from."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class Repo:
    """One repository: its commits, each a whole tree of files."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes]) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}".encode())
        for name in sorted(files):
            digest.update(f"{name}\0{blob_id(files[name])}".encode())
        self.commits[digest.hexdigest()] = dict(files)
        return digest.hexdigest()

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of `main`."""
        return self.commits[self.head]


def blob_id(content: bytes) -> str:
    """The id git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The server; use it as a context manager, or through the fixture `hub`.

    Attributes:
        repos (`dict[tuple[str, str], Repo]`): by kind (`"models"` or `"datasets"`) and id.
        collections (`dict[str, dict]`): by slug, as the interface gives them.
        requests (`list[str]`): `"METHOD path"` of every request so far.
        cut (`set[str]`): ids of repositories whose commits end in a connection that is cut.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}
        self.requests: list[str] = []
        self.cut: set[str] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a child process that knows this Hub only, with an empty cache in `home`."""
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HF_COMPRESS_DATA")
        kept = {name: value for name, value in os.environ.items() if name not in offline}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        ours |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return kept | ours | ({"HF_TOKEN": token} if token else {})

    def add(self, repo_id: str, files: Mapping[str, bytes], kind: str = "models", private: bool = False) -> Repo:
        """Put a repository on the Hub without going through a client."""
        repo = self.repos[kind, repo_id] = Repo(private)
        repo.commit(files)
        return repo


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method = "GET" if self.command == "HEAD" else self.command
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            try:
                for verb, pattern, name in _ROUTES:
                    if verb == method and (match := re.fullmatch(pattern, path)):
                        return getattr(self, name)(body, **match.groupdict())
                raise HubError(404, f"There is no {method} {path} on this Hub.")
            except HubError as error:
                headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
                self.answer({"error": str(error)}, error.status, headers)

    do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, *arguments) -> None:
        pass

    # ---- what the routes share

    def answer(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def signed_in(self, needed: bool = True) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == TOKEN:
            return True
        if token or needed:
            message = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            raise HubError(401, message)
        return False

    def repo(self, kind: str | None, repo_id: str, write: bool = False) -> Repo:
        signed_in = self.signed_in(needed=write)
        repo = self.server.repos.get((kind or "models", repo_id))
        if repo is None or (repo.private and not signed_in):
            raise HubError(404 if signed_in else 401, "Repository not found", "RepoNotFound")
        if write and not repo_id.startswith(f"{USER}/"):
            raise HubError(403, f"You don't have the rights to write to {repo_id}")
        return repo

    def revision(self, repo: Repo, revision: str | None) -> str:
        if revision in (None, "main"):
            return repo.head
        if revision not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision

    # ---- routes

    def whoami(self, body: bytes) -> None:
        self.signed_in()
        access = {"accessToken": {"displayName": "tests", "role": "write"}, "type": "access_token"}
        self.answer({"type": "user", "id": USER, "name": USER, "fullname": USER, "orgs": [], "auth": access})

    def create(self, body: bytes) -> None:
        self.signed_in()
        wanted = json.loads(body)
        kind = f"{wanted.get('type') or 'model'}s"
        owner = wanted.get("organization") or USER
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if owner != USER:
            raise HubError(403, f"You don't have the rights to create a repo under the namespace {owner}")
        if (kind, repo_id) in self.server.repos:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.server.add(repo_id, {".gitattributes": b""}, kind, private)
        self.answer({"url": url, "id": repo_id, "name": repo_id})

    def delete(self, body: bytes) -> None:
        wanted = json.loads(body)
        kind, repo_id = f"{wanted.get('type') or 'model'}s", f"{wanted.get('organization') or USER}/{wanted['name']}"
        self.repo(kind, repo_id, write=True)
        del self.server.repos[kind, repo_id]
        self.answer({})

    def validate_yaml(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        block = re.match(r"---\s*\n(.*?)\n---", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(block.group(1)) if block else {}
        except yaml.YAMLError as error:
            return self.answer({"errors": [{"message": f"the YAML is not valid: {error}"}], "warnings": []}, 400)
        errors = []
        if not isinstance(metadata, dict):
            errors = [{"message": "the YAML must be a mapping"}]
        elif "model-index" in metadata and not all(entry.get("name") for entry in metadata["model-index"]):
            errors = [{"message": '"model-index[0].name" is required'}]
        missing = [] if block else [{"message": "empty or missing yaml metadata in repo card"}]
        self.answer({"errors": errors, "warnings": missing}, 400 if errors else 200)

    def preupload(self, body: bytes, kind: str, id: str, revision: str) -> None:
        files = self.repo(kind, id, write=True).files
        answers = []
        for wanted in json.loads(body)["files"]:
            path = wanted["path"]
            known = {"oid": blob_id(files[path])} if path in files else {}
            answers.append({"path": path, "uploadMode": "regular", "shouldIgnore": False, **known})
        self.answer({"files": answers, "commitOid": self.repo(kind, id).head})

    def commit(self, body: bytes, kind: str, id: str, revision: str) -> None:
        repo = self.repo(kind, id, write=True)
        if revision != "main":
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if id in self.server.cut:
            self.close_connection = True  # without an answer
            return
        files = dict(repo.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif entry["key"] == "deletedFolder":
                files = {name: data for name, data in files.items() if not name.startswith(f"{value['path']}/")}
            elif entry["key"] != "header":
                raise HubError(400, f"This Hub has no operation {entry['key']!r}.")
        oid = repo.commit(files)
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{id}/commit/{oid}"})

    def info(self, body: bytes, kind: str, id: str, revision: str | None) -> None:
        repo = self.repo(kind, id)
        sha = self.revision(repo, revision)
        siblings = [{"rfilename": name} for name in sorted(repo.commits[sha])]
        facts = {"id": id, "modelId": id, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}
        self.answer({**facts, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    def refs(self, body: bytes, kind: str, id: str) -> None:
        head = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.repo(kind, id).head}
        self.answer({"branches": [head], "tags": [], "converts": []})

    def tree(self, body: bytes, kind: str, id: str, revision: str, path: str | None) -> None:
        repo = self.repo(kind, id)
        entries = _entries(repo.commits[self.revision(repo, revision)])
        prefix = f"{path.strip('/')}/" if path else ""
        if prefix and not any(name.startswith(prefix) for name in entries):
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        inside = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
        if "recursive=true" not in urlsplit(self.path).query.lower():
            inside = {name: entry for name, entry in inside.items() if "/" not in name.removeprefix(prefix)}
        self.answer(list(inside.values()))

    def paths_info(self, body: bytes, kind: str, id: str, revision: str) -> None:
        repo = self.repo(kind, id)
        entries = _entries(repo.commits[self.revision(repo, revision)])
        self.answer([entries[path] for path in json.loads(body)["paths"] if path in entries])

    def list_collections(self, body: bytes) -> None:
        signed_in = self.signed_in(needed=False)
        owner = parse_qs(urlsplit(self.path).query).get("owner", [None])[0]
        found = [entry for entry in self.server.collections.values() if owner in (None, entry["owner"]["name"])]
        # the Hub lists at most four items of each, and says nothing of a position
        plain = [{**entry, "items": entry["items"][:4]} for entry in found if signed_in or not entry["private"]]
        self.answer([{key: value for key, value in entry.items() if key != "position"} for entry in plain])

    def create_collection(self, body: bytes) -> None:
        self.signed_in()
        wanted = json.loads(body)
        if wanted["namespace"] != USER:
            raise HubError(403, f"You don't have the rights to create a collection for {wanted['namespace']}")
        if not 0 < len(wanted["title"]) <= 60:
            raise HubError(400, "Too big: expected string to have <=60 characters at title")
        same = [slug for slug, entry in self.server.collections.items() if entry["title"] == wanted["title"]]
        if same:
            return self.answer({"error": "This collection exists already", "slug": same[0]}, 409)
        title = re.sub(r"[^a-z0-9]+", "-", wanted["title"].lower()).strip("-")
        slug = f"{USER}/{title}-{len(self.server.collections):024x}"
        facts = {"slug": slug, "title": wanted["title"], "owner": {"name": USER}, "private": wanted["private"]}
        facts |= {"items": [], "lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "theme": "blue", "upvotes": 0}
        self.server.collections[slug] = facts
        self.answer(facts)

    def collection(self, body: bytes, slug: str) -> None:
        entry = self.server.collections.get(slug)
        if entry is None or (entry["private"] and not self.signed_in(needed=False)):
            raise HubError(404, "Collection not found")
        self.answer(entry)

    def add_item(self, body: bytes, slug: str) -> None:
        self.signed_in()
        items, wanted = self.server.collections[slug]["items"], json.loads(body)["item"]
        self.repo(f"{wanted['type']}s", wanted["id"])
        if any(item["id"] == wanted["id"] for item in items):
            raise HubError(409, "This item is in the collection already")
        items.append({"_id": f"{len(items):024x}", **wanted, "position": len(items)})
        self.answer(self.server.collections[slug])

    def file(self, body: bytes, kind: str | None, id: str, revision: str, path: str) -> None:
        repo = self.repo(kind, id)
        sha = self.revision(repo, revision)
        content = repo.commits[sha].get(path)
        if content is None:
            self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob_id(content)}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.command == "GET":
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self.answer(content[start:stop], 206, headers)
        self.answer(content, 200, headers)


def _entries(files: Mapping[str, bytes]) -> dict[str, dict]:
    """The folders and files of a tree as the Hub lists them."""
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = {name: {"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)}
    for name, content in sorted(files.items()):
        entries[name] = {"type": "file", "path": name, "oid": blob_id(content), "size": len(content)}
    return entries


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub of its own for every test."""
    with HubServer() as server:
        yield server
