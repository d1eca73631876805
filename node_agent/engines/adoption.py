"""Engines that were running before us: read over loopback every few seconds, never written.

Comes in: orders with an `adopt_url`. Goes out: `AdoptedNow`, with the last models that could be read. Started by
`node_agent.engines.house`. Only the two GETs that the adapter names are made; answers are bounded in size and time, and
a stranger's: what is odd in them is left out.
"""

import asyncio
import contextlib
import http.client
import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from adapters.contract import Adapter, Adoptable, AdoptedModel
from core.addresses import loopback_url
from core.errors import Failure
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.engines.orders import AdoptedNow, EngineOrder

READ_EVERY_S = 3.0
_PATIENCE_S = 2.0
_MAX_ANSWER_BYTES = 4 * 1024**2
_MAX_MODELS = 500
_HEX = re.compile(r"^[0-9a-f]{64}$")


class Adoptions:
    """One reader per engine that is adopted here."""

    def __init__(
        self,
        *,
        adapter: Callable[[str], Adapter],
        guard: TaskGuard,
        log: Log,
        changed: Callable[[], None],
        read_every_s: float = READ_EVERY_S,
    ) -> None:
        self._adapter = adapter
        self._guard = guard
        self._log = log
        self._changed = changed
        self._read_every_s = read_every_s
        self._now: dict[str, AdoptedNow] = {}
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

    def now(self) -> dict[str, AdoptedNow]:
        """Return what was read last, by engine."""
        return dict(self._now)

    async def _read(self, engine: str, url: str) -> None:
        try:
            base_url = loopback_url(url)
            adapter = self._adapter(engine)
            if not isinstance(adapter, Adoptable):
                raise Failure("engine.runtime_unsupported", f"a running {engine} cannot be adopted")
        except Failure as failure:  # the controller refuses it first; a node trusts nobody with its loopback
            self._take(engine, AdoptedNow(base_url=url[:200], message=str(failure)))
            return
        while True:
            try:
                found = await asyncio.to_thread(read, base_url, adapter)
            except Failure as failure:
                before = self._now.get(engine)
                # Not forgotten for one answer that is late: a restart of the engine takes seconds.
                models, version = (before.models, before.version) if before else ((), "")
                found = AdoptedNow(base_url=base_url, version=version, models=models, message=failure.message)
            self._take(engine, found)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._never.wait(), self._read_every_s)

    def _take(self, engine: str, found: AdoptedNow) -> None:
        before = self._now.get(engine)
        if found == before:
            return
        self._now[engine] = found
        if before is None or before.message != found.message:
            self._log.info("engine_adopted", engine=engine, url=found.base_url, reason=found.message)
        self._changed()


def read(base_url: str, adapter: Adoptable) -> AdoptedNow:
    """Return what the engine at `base_url` (of loopback) tells of itself. Blocks, at most 4 s.

    Raises:
        Failure: `source.unreachable` when it does not answer, or with something else than it should.
    """
    version_path, models_path = adapter.adoption_paths
    bodies = _body(base_url, version_path), _body(base_url, models_path)
    try:
        found = adapter.adopted(*bodies)
    except Failure as failure:
        raise Failure("source.unreachable", f"{failure.message}: {base_url}", hint=failure.hint) from failure
    models = {model.name: model for model in found.models if _is_sound(model)}
    return AdoptedNow(
        base_url=base_url,
        version=found.version[:80] if found.version.isprintable() else "",
        models=tuple(models[name] for name in sorted(models))[:_MAX_MODELS],
    )


def _body(base_url: str, path: str) -> bytes:
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
    if len(body) > _MAX_ANSWER_BYTES:
        raise Failure("source.unreachable", f"the engine at {base_url} answers GET {path} with too much")
    return body


def _is_sound(model: AdoptedModel) -> bool:
    """Return whether a model can be registered: what has no digest is nothing that could be told from another."""
    texts = (model.name, model.format, model.architecture, model.quantization)
    return bool(model.name) and _HEX.match(model.sha256) is not None and all(text.isprintable() for text in texts)
