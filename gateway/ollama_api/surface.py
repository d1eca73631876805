"""Ollama's API at the door, in front of any engine: its paths, and every refusal in Ollama's words.

Comes in: visits. Goes out: answers. Called by the app. It must not load, keep or change models: that is the operator's,
and each request for it is refused with the command that does it.
"""

from collections.abc import Callable, Mapping
from functools import partial

from adapters.contract import Dialect, Endpoint
from core.clock import Clock
from core.errors import Failure
from core.names import did_you_mean
from gateway import refusals
from gateway.gate import Gate
from gateway.ollama_api import listing, requests
from gateway.ollama_api.answers import Text, Vectors, instant
from gateway.openai import errors
from gateway.openai.surface import carry, checked_body
from gateway.passage import JSON, NDJSON, Passage
from gateway.relay import DialectOf, Relay, checked_route
from gateway.table import Route, Table
from gateway.visit import Answer, Handler, Headers, Send, Visit

_PREFIX = "/api/"
_BLOBS = "/api/blobs/"
_PLAIN = (b"content-type", b"text/plain; charset=utf-8")
_RUNNING = b"Ollama is running"
"""What every client that looks for an Ollama expects to read at /."""
_OPERATORS: Mapping[str, tuple[str, str]] = {
    "/api/pull": ("POST", "an operator brings models in with `slice pull NAME`"),
    "/api/push": ("POST", "the cluster publishes nothing; `slice export` prints what it has"),
    "/api/create": ("POST", "an operator makes models with `slice pull` and settings with `slice deploy`"),
    "/api/copy": ("POST", "an operator copies models with `slice cp` and names them with `slice alias`"),
    "/api/delete": ("DELETE", "an operator removes models with `slice rm NAME`"),
}
_LOAD_HINT = "an operator starts and stops models with `slice deploy`, `slice stop` and `slice enable`"


class OllamaSurface:
    """Owns `/` and `/api`; `release` is ours, told beside the version of Ollama whose API this is.

    `unmet` hears of a model that was to be loaded and that nothing serves.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        relay: Relay,
        dialect_of: DialectOf,
        clock: Clock,
        body_limit_bytes: int,
        release: str,
        unmet: Callable[[str], None],
    ) -> None:
        self._gate = gate
        self._relay = relay
        self._dialect_of = dialect_of
        self._clock = clock
        self._body_limit_bytes = body_limit_bytes
        self._release = release
        self._unmet = unmet
        reads: Mapping[str, Handler] = {
            "/": self._greet,
            "/api/version": self._tell_version,
            "/api/tags": partial(self._list, listing.tags_body),
            "/api/ps": partial(self._list, listing.ps_body),
        }
        self._routes: dict[str, Mapping[str, Handler]] = {
            **{path: {"GET": handler, "HEAD": handler} for path, handler in reads.items()},
            "/api/show": {"POST": self._show},
            "/api/chat": {"POST": self._chat},
            "/api/generate": {"POST": self._generate},
            "/api/embed": {"POST": partial(self._embed, is_old=False)},
            "/api/embeddings": {"POST": partial(self._embed, is_old=True)},
            **{path: {method: partial(self._refuse, what)} for path, (method, what) in _OPERATORS.items()},
        }
        blobs: Handler = partial(self._refuse, "an operator brings files in with `slice pull`")
        self._blobs: Mapping[str, Handler] = {"HEAD": blobs, "POST": blobs}

    def owns(self, path: str) -> bool:
        """Return whether `path` is Ollama's."""
        return path == "/" or path.startswith(_PREFIX)

    def handler(self, method: str, path: str) -> Handler:
        """Return what serves a request; see `visit.Surface`."""
        methods = self._methods(path)
        if methods is None:
            raise Failure("request.not_found", f"{method} {path[:200]} is not part of this API")
        handler = methods.get(method)
        if handler is None:
            raise Failure("request.method_not_allowed", f"{method} is not allowed here", hint=f"use {_joined(methods)}")
        return handler

    def refusal(self, visit: Visit, failure: Failure) -> Answer:
        """Return Ollama's error object for `failure`: one sentence."""
        headers: Headers = [JSON, *errors.error_headers(failure)]
        if failure.code == "request.method_not_allowed":
            headers.append((b"allow", _joined(self._methods(visit.path) or {}).encode()))
        text = errors.text_of(failure)
        if failure.code == "auth.missing":
            text += ", or put it into OLLAMA_HOST as http://HOST:PORT/k/slice_..."
        body = requests.encoded({"error": text})
        return Answer(status=errors.status_of(failure), body=b"" if visit.method == "HEAD" else body, headers=headers)

    def _methods(self, path: str) -> Mapping[str, Handler] | None:
        return self._routes.get(path) or (self._blobs if path.startswith(_BLOBS) else None)

    async def _greet(self, visit: Visit) -> None:
        await _answer(visit, _RUNNING, _PLAIN)

    async def _tell_version(self, visit: Visit) -> None:
        self._gate.admit(visit)
        await _answer(visit, listing.version_body(self._release))

    async def _list(self, body: Callable[..., bytes], visit: Visit) -> None:
        table = self._gate.admit(visit)
        await _answer(visit, body(table, visit.caller))

    async def _refuse(self, what: str, visit: Visit) -> None:
        self._gate.admit(visit)
        raise Failure("door.operators_matter", "The front door changes no models", hint=what)

    async def _show(self, visit: Visit) -> None:
        table = self._gate.admit(visit)
        name = requests.shown(await checked_body(visit, self._body_limit_bytes))
        await _answer(visit, listing.show_body(table, _route(table, visit, name)))

    async def _chat(self, visit: Visit) -> None:
        table, asked = await self._asked(visit, Endpoint.CHAT)
        route = _route(table, visit, asked.model)
        if not asked.messages:
            told = {"message": {"role": "assistant", "content": ""}}
            await self._load(visit, table, route, asked, told, Endpoint.CHAT)
            return
        words = requests.chat(asked, route.public_name, self._dialect(table, route))
        await self._carry(visit, asked, words, is_chat=True)

    async def _generate(self, visit: Visit) -> None:
        table, asked = await self._asked(visit, Endpoint.COMPLETIONS)
        route = _route(table, visit, asked.model)
        can_chat = Endpoint.CHAT.value in route.endpoints
        if not asked.prompt and not asked.suffix and not asked.images:
            endpoint = Endpoint.CHAT if can_chat else Endpoint.COMPLETIONS
            await self._load(visit, table, route, asked, {"response": ""}, endpoint)
            return
        words = requests.generation(asked, route.public_name, self._dialect(table, route), can_chat=can_chat)
        await self._carry(visit, asked, words, is_chat=False)

    async def _embed(self, visit: Visit, *, is_old: bool) -> None:
        table, asked = await self._asked(visit, Endpoint.EMBEDDINGS)
        route = _route(table, visit, asked.model)
        if not (asked.prompt if is_old else asked.input):
            told: dict[str, object] = {"embedding": []} if is_old else {"model": asked.model, "embeddings": []}
            self._check_loaded(table, route, Endpoint.EMBEDDINGS)
            await _answer(visit, requests.encoded(told))
            return
        words = requests.embedding(asked, route.public_name, is_old=is_old)
        found = Vectors(asked.model, is_old=is_old, clock=self._clock, started_s=visit.started_s)
        passage = Passage(visit, stream=None, whole=found.whole, headers=_told(asked), kind=NDJSON)
        await self._pass(visit, words, passage)

    async def _asked(self, visit: Visit, endpoint: Endpoint) -> tuple[Table, requests.Parsed]:
        table = self._gate.admit(visit)
        visit.tally.endpoint = endpoint.value
        return table, requests.parsed(await checked_body(visit, self._body_limit_bytes))

    async def _carry(self, visit: Visit, asked: requests.Parsed, words: requests.Translated, *, is_chat: bool) -> None:
        text = Text(asked.model, is_chat=is_chat, clock=self._clock, started_s=visit.started_s)
        stream, whole = (text, text.line) if asked.is_stream else (None, text.whole)
        await self._pass(visit, words, Passage(visit, stream=stream, whole=whole, headers=_told(asked), kind=NDJSON))

    async def _pass(self, visit: Visit, words: requests.Translated, send: Send) -> None:
        await carry(self._relay, visit, words.endpoint, words.body, send)

    def _dialect(self, table: Table, route: Route) -> Dialect | None:
        return self._dialect_of(listing.leaf(table, route).engine)

    async def _load(
        self,
        visit: Visit,
        table: Table,
        route: Route,
        asked: requests.Parsed,
        told: Mapping[str, object],
        endpoint: Endpoint,
    ) -> None:
        """Answer a request without a prompt, by which Ollama's clients load a model, or unload it."""
        if asked.asks_unload:
            raise Failure("door.operators_matter", "The front door unloads no models", hint=_LOAD_HINT)
        self._check_loaded(table, route, endpoint)
        head = {"model": asked.model, "created_at": instant(self._clock)}
        await _answer(visit, requests.encoded({**head, **told, "done": True, "done_reason": "load"}))

    def _check_loaded(self, table: Table, route: Route, endpoint: Endpoint) -> None:
        checked_route(table, route.public_name, endpoint)
        if not listing.is_loaded(table, route):
            self._unmet(route.public_name)
            raise refusals.not_ready(route)


def _route(table: Table, visit: Visit, name: str) -> Route:
    found = listing.named(table, visit.caller, name)
    if found is None:
        known = listing.names(table, visit.caller)
        visit.tally.model = name[:80]
        raise Failure(
            "registry.model_not_found",
            f"model '{name[:80]}' not found.{did_you_mean(name[:80], known)}",
            hint="GET /api/tags lists the models",
        )
    return found


def _told(asked: requests.Parsed) -> Headers:
    """Return the header that names the options which changed nothing."""
    names = ",".join(name[:40] for name in asked.ignored[:20] if name.isascii() and name.isidentifier())
    return [(b"x-slice-ignored-options", names.encode())] if names else []


async def _answer(visit: Visit, body: bytes, kind: tuple[bytes, bytes] = JSON) -> None:
    await visit.answer(Answer(status=200, body=b"" if visit.method == "HEAD" else body, headers=[kind]))


def _joined(methods: Mapping[str, Handler]) -> str:
    return ", ".join(sorted(methods))
