"""Engines that were running before us: read over loopback every few seconds, never written.

Comes in: orders with an `adopt_url`. Goes out: `Adopted`, with the last models that could be read. Started by
`node_agent.engines.house`. Only `GET /api/version` and `GET /api/tags` are asked (Ollama's API, docs/openapi.yaml of
ollama/ollama); answers are bounded in size and time, and a stranger's: what is odd in them is left out.
"""

import asyncio
import contextlib
import http.client
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from core.addresses import loopback_url
from core.errors import Failure
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.engines.orders import Adopted, AdoptedModel, EngineOrder

READ_EVERY_S = 3.0
_PATIENCE_S = 2.0
_MAX_ANSWER_BYTES = 4 * 1024**2
_MAX_MODELS = 500
_HEX = re.compile(r"^[0-9a-f]{64}$")


class Adoptions:
    """One reader per engine that is adopted here."""

    def __init__(
        self, *, guard: TaskGuard, log: Log, changed: Callable[[], None], read_every_s: float = READ_EVERY_S
    ) -> None:
        self._guard = guard
        self._log = log
        self._changed = changed
        self._read_every_s = read_every_s
        self._now: dict[str, Adopted] = {}
        self._readers: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._never = asyncio.Event()  # never set: waiting on it with a timeout is a timer

    def apply(self, orders: Iterable[EngineOrder]) -> None:
        """Make `orders` the whole of what is adopted here."""
        wanted = {order.engine: order.adopt_url for order in orders}
        for engine, (url, reader) in list(self._readers.items()):
            if wanted.get(engine) != url:
                reader.cancel()
                del self._readers[engine]
                self._now.pop(engine, None)
        for engine, url in wanted.items():
            if engine not in self._readers:
                self._readers[engine] = (url, self._guard.brief(f"adopted {engine}", self._read(engine, url)))

    def now(self) -> dict[str, Adopted]:
        """Return what was read last, by engine."""
        return dict(self._now)

    async def _read(self, engine: str, url: str) -> None:
        try:
            base_url = loopback_url(url)
        except Failure as failure:  # the controller refuses it first; a node trusts nobody with its loopback
            self._take(engine, Adopted(base_url=url[:200], message=str(failure)))
            return
        while True:
            try:
                found = await asyncio.to_thread(read, base_url)
            except Failure as failure:
                before = self._now.get(engine)
                # Not forgotten for one answer that is late: a restart of the engine takes seconds.
                models, version = (before.models, before.version) if before else ((), "")
                found = Adopted(base_url=base_url, version=version, models=models, message=failure.message)
            self._take(engine, found)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._never.wait(), self._read_every_s)

    def _take(self, engine: str, found: Adopted) -> None:
        before = self._now.get(engine)
        if found == before:
            return
        self._now[engine] = found
        if before is None or before.message != found.message:
            self._log.info("engine_adopted", engine=engine, url=found.base_url, reason=found.message)
        self._changed()


def read(base_url: str) -> Adopted:
    """Return what the engine at `base_url` (of loopback) tells of itself. Blocks, at most 4 s.

    Raises:
        Failure: `source.unreachable` when it does not answer, or with something else than it should.
    """
    version = _object(base_url, "/api/version").get("version")
    return Adopted(
        base_url=base_url,
        version=_text(version, 80),
        models=models_of(_object(base_url, "/api/tags")),
    )


def _object(base_url: str, path: str) -> Mapping[str, Any]:
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(_MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        words = "does not answer in time" if isinstance(error, TimeoutError) else "does not answer"
        raise Failure("source.unreachable", f"the engine at {base_url} {words}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise Failure("source.unreachable", f"the engine at {base_url} answers {answer.status} to GET {path}")
    try:
        found = json.loads(body) if len(body) <= _MAX_ANSWER_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Failure("source.unreachable", f"the engine at {base_url} does not answer GET {path} as Ollama does")
    return found


def models_of(tags: Mapping[str, Any]) -> tuple[AdoptedModel, ...]:
    """Return the models of an answer to `GET /api/tags`, by name; those that run on another host are left out.

    Source: schemas ListResponse and ModelSummary of Ollama's docs/openapi.yaml.
    """
    listed = tags.get("models")
    found: dict[str, AdoptedModel] = {}
    for item in listed if isinstance(listed, list) else ():
        model = _model(item)
        if model is not None and len(found) < _MAX_MODELS:
            found[model.name] = model
    return tuple(found[name] for name in sorted(found))


def _model(item: object) -> AdoptedModel | None:
    if not isinstance(item, dict) or item.get("remote_host") or item.get("remote_model"):
        return None
    name = _text(item.get("name") or item.get("model"), 200)
    sha256 = _text(item.get("digest"), 80).removeprefix("sha256:")
    size = item.get("size")
    details = item.get("details")
    details = details if isinstance(details, dict) else {}
    if not name or not _HEX.match(sha256):
        return None
    return AdoptedModel(
        name=name,
        sha256=sha256,
        size_bytes=size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 else 0,
        format=_text(details.get("format"), 40),
        architecture=_text(details.get("family"), 80),
        quantization=_text(details.get("quantization_level"), 40),
    )


def _text(value: object, longest: int) -> str:
    return value[:longest] if isinstance(value, str) and value.isprintable() else ""
