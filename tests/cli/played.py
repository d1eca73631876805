"""A cluster played by two small HTTP servers: the admin API from docs/admin-api.md and a front door with SSE.

Tests set its plain attributes and read `requests`; every answer is made from them under one lock.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.cli import things

TOKEN = "operator-secret"
API_KEY = "slice_key"
Answer = tuple[int, Any]


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        self.answer = (status, things.error(code, message, hint))
        super().__init__(message)


class PlayedCluster:
    """The state of the played cluster. Lists of steps (`pull_steps`, `deployment_steps`) advance with each look."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.deployments: dict[str, Any] = {}
        self.stages: list[Any] = []
        self.applied: list[Any] = []
        self.replicas: list[Any] = []
        self.nodes: list[Any] = [things.node()]
        self.keys: list[Any] = [things.key()]
        self.events: list[Any] = []
        self.usage: list[Any] = []
        self.stored: list[Any] = []
        self.places: list[Any] = []
        self.kept: list[Any] = []
        self.template = "{{ messages }}"
        self.catalog = [
            {"name": "smollm2", "source": "pypi:x", "description": "A small model.", "size_bytes": 98362432}
        ]
        self.logs: dict[str, list[str]] = {}
        self.engines: dict[str, Any] = {"llamacpp": things.engine(), "fake": things.engine("fake", nodes=[])}
        self.install_steps: list[dict[str, Any] | None] = []
        self.pull: dict[str, Any] = {}
        self.pull_steps: list[dict[str, Any]] = []
        self.deployment_steps: list[dict[str, Any]] = []
        self.node_steps: list[dict[str, Any]] = []
        self.replica_steps: list[dict[str, Any] | None] = []
        self.override: Callable[[str, str], Answer | None] = lambda method, path: None
        self.answer_pieces: list[str] = ["Hel", "lo"]
        self.door_refusals: list[Answer] = []
        self.door_error: dict[str, Any] | None = None
        self.door_hangs = False
        self.door_cuts = False
        self.door_closed = threading.Event()
        self.log_stays_open = False
        self.event_stream_breaks = 0
        self.requests: list[tuple[str, str, Any]] = []
        self.chats: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.admin_server = ThreadingHTTPServer(("127.0.0.1", 0), type("Admin", (AdminHandler,), {"cluster": self}))
        self.door_server = ThreadingHTTPServer(("127.0.0.1", 0), type("Door", (DoorHandler,), {"cluster": self}))
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            for server in (self.admin_server, self.door_server)
        ]

    @property
    def admin_port(self) -> int:
        return int(self.admin_server.server_address[1])

    @property
    def door_port(self) -> int:
        return int(self.door_server.server_address[1])

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.ended.set()
        for server in (self.admin_server, self.door_server):
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def sent(self, method: str) -> list[tuple[str, Any]]:
        """Return path and body of every request with `method`."""
        return [(path, body) for verb, path, body in self.requests if verb == method]

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        overridden = self.override(method, path)
        if overridden is not None:
            return overridden
        parts = [unquote(part) for part in path.split("/")]
        handler = getattr(self, f"_{parts[0]}", None)
        if handler is None:
            raise Refused(404, "request.not_found", f"there is no {path}")
        return handler(method, parts[1:], query, body)  # type: ignore[no-any-return]

    def _usage(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        return 200, {"by": query["by"], "items": self.usage}

    def _status(self, *_: Any) -> Answer:
        return 200, {
            "version": "0.1.0",
            "cluster_id": "clu_1",
            "leader_epoch": 3,
            "schema": 1,
            "nodes": {"ready": 1, "total": 1},
            "deployments": {"ready": 1, "total": 2},
            "replicas": {"ready": 1, "total": 1},
            "doors": 1,
            "route_version": 12,
            "openai_base_url": f"http://127.0.0.1:{self.door_port}/v1",
        }

    def _catalog(self, *_: Any) -> Answer:
        return 200, {"items": self.catalog}

    def _pulls(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if method == "POST":
            known = {item["name"] for item in self.catalog}
            if body["name"] in self.models:
                return 200, {"id": "pul_1", "model": body["name"], "state": "done", "bytes_total": 0}
            if body["name"] not in known and not body["source"]:
                raise Refused(
                    404,
                    "registry.model_not_found",
                    f"no model '{body['name']}'. Did you mean 'smollm2'?",
                    "give --source",
                )
            self.pull = {
                "id": "pul_1",
                "model": body["name"],
                "source": body["source"] or "pypi:x",
                "node": None,
                "state": "queued",
                "bytes_done": 0,
                "bytes_total": 0,
                "error": None,
                "created_at": things.CREATED,
                "finished_at": None,
                "waiting": "",
            }
            return 202, self.pull
        if method == "DELETE":
            self.pull = {**self.pull, "state": "cancelled"}
            return 200, self.pull
        if self.pull_steps:
            self.pull = {**self.pull, **self.pull_steps.pop(0)}
        if self.pull.get("state") == "done":
            self.models.setdefault(self.pull["model"], things.model(self.pull["model"]))
        return 200, self.pull

    def _models(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if not rest:
            return 200, {"items": list(self.models.values())}
        if rest[0] not in self.models:
            raise Refused(404, "registry.model_not_found", f"no model '{rest[0]}'", "`slice list` shows the models")
        if rest[1:] == ["versions", "1", "template"]:
            found = {"model": rest[0], "version": 1, "sha256": "00", "text": self.template}
            return 200, {**found, "findings": self.models[rest[0]]["versions"][0].get("template_findings", [])}
        if rest[1:2] == ["versions"]:
            return self._versions(method, rest, query, body)
        if rest[1:2] == ["where"]:
            return 200, {"items": self.places}
        if rest[1:2] == ["nodes"]:
            return 202, {"node": rest[2], "items": [{}], "total_bytes": 1024**2, "kept": self.kept}
        if rest[1:2] == ["copies"]:
            state = "queued" if self.pull_steps else "done"
            self.pull = {"id": "cpy_1", "model": rest[0], "version": 1, "node": body["to"], "state": state}
            return 202, {**self.pull, "from": body["from"], "bytes_total": 1024**2, "bytes_done": 0, "error": None}
        if method == "POST":
            self.models[body["to"]] = {**self.models[rest[0]], "name": body["to"]}
            return 201, self.models[body["to"]]
        if method == "DELETE":
            if rest[0] in self.deployments and query.get("force") != "true":
                raise Refused(409, "registry.model_in_use", f"{rest[0]} is deployed", "use force")
            del self.models[rest[0]]
            return 204, None
        return 200, self.models[rest[0]]

    def _store(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if method == "GET":
            return 200, {"items": self.stored, "nodes": []}
        items = [item for item in self.stored if not item["versions"]]
        total = sum(item["size_bytes"] for item in items)
        return 200, {"dry_run": body["dry_run"], "items": items, "total_bytes": total, "kept": []}

    def _versions(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        model = self.models[rest[0]]
        found = [one for one in model["versions"] if one["number"] == int(rest[2])]
        if not found:
            raise Refused(404, "registry.version_not_found", f"model '{rest[0]}' has no version {rest[2]}")
        if method == "DELETE":
            if self.deployments and query.get("force") != "true":
                raise Refused(409, "registry.model_in_use", "it is used by deployment smollm2", "use force")
            model["versions"].remove(found[0])
            return 204, None
        if rest[3:] == ["stages"]:
            return 200, {"items": self.stages}
        if method == "PUT":
            if (found[0]["stage"], body["stage"]) == ("candidate", "production"):
                raise Refused(409, "registry.stage_conflict", "it is candidate: it cannot go to production")
            move = {"at": things.CREATED, "from": found[0]["stage"], "to": body["stage"], "reason": body["reason"]}
            self.stages.append(move)
            found[0]["stage"] = body["stage"]
        return 200, {"model": rest[0], **found[0]}

    def _aliases(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if not rest:
            return 200, {"items": [self._alias(name) for name in self.aliases]}
        if method == "DELETE":
            if self.aliases.pop(rest[0], None) is None:
                raise Refused(404, "registry.alias_not_found", f"no alias '{rest[0]}'")
            return 204, None
        self.aliases[rest[0]] = body["model"]
        return 200, self._alias(rest[0])

    def _secrets(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if method == "PUT":
            self.secrets[rest[0]] = body["value"]
        elif method == "DELETE":
            if self.secrets.pop(rest[0], None) is None:
                raise Refused(404, "secret.not_found", f"no secret '{rest[0]}'")
            return 204, None
        shown = [
            {"name": name, "created_at": things.CREATED, "used_by": ["gpt"], "is_readable": True}
            for name in self.secrets
        ]
        return 200, shown[-1] if rest else {"items": shown}

    def _alias(self, name: str) -> dict[str, Any]:
        model, _, number = self.aliases[name].partition("@v")
        return {"name": name, "model": model, "version": int(number) if number else None, "resource_version": 1}

    def _deployments(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if method == "POST" and rest[1:] == ["copy"]:
            self.deployments[body["to"]] = {**self.deployments[rest[0]], "name": body["to"]}
            return 201, self.deployments[body["to"]]
        if method == "POST":
            model, _, number = body["model"].partition("@v")
            made = things.starting(
                name=body["name"] or model,
                model=model,
                version=int(number or 1),
                settings=body["settings"],
                replicas=body["replicas"],
            )
            self.deployments[made["name"]] = made
            return 201, made
        if not rest:
            return 200, {"items": list(self.deployments.values())}
        if rest[0] not in self.deployments:
            raise Refused(404, "deployment.not_found", f"no deployment '{rest[0]}'")
        found = self.deployments[rest[0]]
        if method == "PATCH":
            found = {**found, **body}
        elif method == "DELETE":
            return 202, {**self.deployments.pop(rest[0]), "is_deleting": True}
        elif self.deployment_steps:
            found = {**found, **self.deployment_steps.pop(0)}
        self.deployments[rest[0]] = found
        return 200, found

    def _replicas(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if not rest:
            return 200, {"items": self.replicas}
        found = next((item for item in self.replicas if item["id"] == rest[0]), None)
        if method == "GET" and self.replica_steps:
            step = self.replica_steps.pop(0)
            if found is not None and step is None:
                self.replicas.remove(found)
                found = None
            elif found is not None and step is not None:
                found.update(step)
        if found is None:
            raise Refused(404, "replica.not_found", f"no replica '{rest[0]}'")
        if method == "POST":
            found["leaving"] = {"to": body["node"], "successor": None, "waiting": "it begins", "refusal": None}
        elif method == "DELETE":
            found["leaving"] = None
        return (202 if method == "POST" else 200), found

    def _nodes(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if not rest:
            return 200, {"items": self.nodes}
        found = [item for item in self.nodes if item["name"] == rest[0]]
        if not found:
            raise Refused(404, "node.not_found", f"no node '{rest[0]}'")
        if method == "DELETE":
            self.nodes.remove(found[0])
            return 204, None
        if method == "POST":
            found[0].update(is_cordoned=rest[1] != "uncordon", drain=None, replicas=2)
            if rest[1] == "drain":
                found[0]["drain"] = {"since": things.CREATED, "is_forced": body["force"], "replicas": []}
        elif self.node_steps:
            found[0].update(self.node_steps.pop(0))
        return 200, found[0]

    def _engines(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if not rest:
            return 200, {"items": list(self.engines.values())}
        if rest[0] not in self.engines:
            raise Refused(404, "engine.unknown", f"there is no engine '{rest[0]}'", "known engines: llamacpp, fake")
        found = self.engines[rest[0]]
        if method == "GET" and self.install_steps:
            step = self.install_steps.pop(0)
            installs = [] if step is None else [{**things.install(), **step}]
            found = self.engines[rest[0]] = {**found, "nodes": [{**found["nodes"][0], "installs": installs}]}
        if method == "POST" and rest[1] in ("upgrade", "rollback"):
            return 202, {**found, "version": body.get("version") or "0.3.0", "moved": ["smollm2"]}
        if method == "POST" and rest[1] == "adopt":
            return 202, {**found, "node": "box"}
        return (200, found) if method in ("GET", "DELETE") else (202, {**found, "version": body["version"] or "0.3.1"})

    def _keys(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if method == "POST":
            return 201, {**things.key(body["name"]), "key": "slice_fresh"}
        if method == "DELETE":
            return 200, things.key(rest[0], revoked_at=things.CREATED)
        return 200, {"items": self.keys}

    def _apply(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        if not self.applied:
            return 200, {"dry_run": query["dry_run"] == "true", "is_complete": True, "changes": [], "pulls": []}
        answer = self.applied.pop(0)
        if answer.get("pulls"):
            self.pull = answer["pulls"][0]
        return (409 if "error" in answer else 200), answer

    def _events(self, method: str, rest: list[str], query: dict[str, str], body: Any) -> Answer:
        later = [item for item in self.events if item["seq"] > int(query["after"])]
        return 200, {"items": later[: int(query["limit"])]}

    def _routes(self, *_: Any) -> Answer:
        items = [
            {
                "public_name": name,
                "deployment": item["name"],
                "engine": item["engine"],
                "endpoints": ["chat"],
                "targets": ["rep_1"],
                "waiting": "",
            }
            for item in self.deployments.values()
            if item["ready_replicas"]
            for name in [item["name"], *(alias for alias, model in self.aliases.items() if model == item["model"])]
        ]
        door = {"door_id": "d", "applied_version": 12, "last_seen_s_ago": 0.1, "in_flight": 0}
        return 200, {"version": 12, "items": items, "doors": [door]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""

    def read_body(self) -> Any:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Type") == "application/yaml":
            return text.decode()
        return json.loads(text) if text else None

    def send_json(self, status: int, value: Any) -> None:
        text = b"" if value is None else (value if isinstance(value, bytes) else json.dumps(value).encode())
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def send_chunks(self, kind: str, pieces: Iterator[bytes], *, is_whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if is_whole:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


class AdminHandler(_Handler):
    cluster: PlayedCluster

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        body = self.read_body()
        path = parts.path.removeprefix("/api/v1/")
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_json(401, things.error("auth.invalid", "the token is wrong", "look into secrets/"))
            return
        with self.cluster.lock:
            self.cluster.requests.append((method, path, body))
        if path == "export":
            self.send_chunks("application/yaml", iter([b"# a cluster\n", b"models: []\n"]))
        elif path.endswith("/logs"):
            self.send_chunks("text/plain", self._log(path.split("/")[1], query))
        elif path == "events" and query.get("follow") == "true":
            self.send_chunks("application/x-ndjson", self._event_lines(int(query["after"])))
        else:
            self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
        try:
            with self.cluster.lock:
                status, value = self.cluster.answer(method, path, query, body)
        except Refused as refused:
            status, value = refused.answer
        self.send_json(status, value)

    def _log(self, replica: str, query: dict[str, str]) -> Iterator[bytes]:
        lines = self.cluster.logs.get(replica, [])[-int(query["tail"]) :]
        yield from (f"{line}\n".encode() for line in lines)
        if query["follow"] == "true" and self.cluster.log_stays_open:
            self.cluster.ended.wait(20)

    def _event_lines(self, after: int) -> Iterator[bytes]:
        with self.cluster.lock:
            later = [item for item in self.cluster.events if item["seq"] > after]
            if self.cluster.event_stream_breaks > 0 and later:
                self.cluster.event_stream_breaks -= 1
                later = later[:1]
        for item in later:
            yield json.dumps(item).encode() + b"\n"
        if not later:
            self.cluster.ended.wait(20)


class DoorHandler(_Handler):
    cluster: PlayedCluster

    def do_POST(self) -> None:
        body = self.read_body()
        if self.headers.get("Authorization") != f"Bearer {API_KEY}":
            fault = {"message": "wrong key", "type": "invalid_request_error", "param": None}
            self.send_json(401, {"error": {**fault, "code": "invalid_api_key"}})
            return
        with self.cluster.lock:
            self.cluster.chats.append(body)
            refusal = self.cluster.door_refusals.pop(0) if self.cluster.door_refusals else None
        if refusal is not None:
            self.send_json(*refusal)
            return
        try:
            self.send_chunks("text/event-stream", self._events(body), is_whole=not self.cluster.door_cuts)
        except OSError:
            self.cluster.door_closed.set()

    def _events(self, body: dict[str, Any]) -> Iterator[bytes]:
        yield b": ping\n\n"
        for piece in self.cluster.answer_pieces:
            yield self._data({"choices": [{"delta": {"content": piece}}]})
        while self.cluster.door_hangs and not self.cluster.ended.wait(0.02):
            yield b": ping\n\n"
        if self.cluster.door_error is not None:
            yield self._data({"error": self.cluster.door_error})
        if body.get("stream_options"):
            yield self._data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
        if not self.cluster.door_cuts:
            yield b"data: [DONE]\n\n"

    def _data(self, value: Any) -> bytes:
        return b"data: " + json.dumps(value).encode() + b"\r\n\r\n"
