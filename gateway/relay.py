"""One request on its way to an engine and back: choose a replica, send, pass the answer on, or say why not.

Comes in: a checked request and ASGI's `send`. Goes out: the whole answer, or a `Failure` while nothing was sent yet.
Called by the app inside a watch for the client's leaving: cancelling it closes the engine's connection at once. It
must not try again once a byte has gone to the client, and must not pass an engine's error text on (`openai.errors`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from adapters.contract import OPENAI_PATHS, Dialect, Endpoint
from core.clock import Clock
from core.errors import Failure
from gateway import refusals, words
from gateway.balance import Balance
from gateway.openai import errors, requests, stream
from gateway.table import Route, Spawn, Table, Target
from gateway.upstream import EngineDied, EnginePool, EngineUnreachable, Reply, Request
from gateway.usage import counts
from gateway.visit import ClientStalled, Send, Tally

DialectOf = Callable[[str], Dialect | None]

ATTEMPTS = 2
"""Replicas tried for one request: the first and, while the client has not seen a byte, one more."""
MAX_WHOLE_BYTES = 64 * 1024**2
"""Largest answer that is no stream; it is held until complete, so that a dying engine gives a clean 502."""
MAX_ERROR_BYTES = 64 * 1024
TURNED_AWAY_S = 3.0
"""How long a request that only data planes have answered waits for a table in which somebody serves: the time of a few
heartbeats. An engine that was restarted is back under its new incarnation long before."""
_LOOK_AGAIN_S = 0.5
_TURNS_AWAY = frozenset({b"stale", b"fenced", b"path", b"role"})
"""The faults by which a data plane says that this is not, or not now, the engine's machine; no engine saw the request.
See node_agent/dataplane/design.md."""
WRITE_STALL_S = 30.0
"""Longest time a client may leave a stream unread before its engine is freed."""
EVENT_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One checked request; `headers` are the client's that engines may see, `started_s` a monotonic reading.

    What happens to it is noted in `tally`.
    """

    endpoint: Endpoint
    asked: requests.Asked
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]
    started_s: float
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds until an engine's first byte, and between two pieces of its answer."""

    first_byte_s: float
    idle_s: float


class _TryAnother(Exception):
    """This replica failed before the client saw anything; another may do."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class _TurnedAway(_TryAnother):
    """A data plane refused the request before any engine saw it: what the table says is out of date."""


class Relay:
    """Carries requests to the replicas of the current table."""

    def __init__(
        self,
        *,
        table: Callable[[], Table],
        table_after: Callable[[int], Awaitable[None]],
        pool: EnginePool,
        balance: Balance,
        dialect_of: DialectOf,
        clock: Clock,
        timeouts: Timeouts,
    ) -> None:
        self._table = table
        self._table_after = table_after
        self._pool = pool
        self._balance = balance
        self._dialect_of = dialect_of
        self._clock = clock
        self._timeouts = timeouts

    async def answer(self, call: Call, send: Send) -> None:
        """Send an engine's answer to `call`.

        Raises:
            Failure: no replica gave one; nothing was sent.
        """
        tried: set[Spawn] = set()
        turned_away: set[Spawn] = set()
        failure: Failure | None = None
        give_up_at = self._clock.monotonic() + TURNED_AWAY_S
        while len(tried) < ATTEMPTS:
            # Looked up anew each time: a replica unrouted meanwhile gets nothing.
            table = self._table()
            route = call.tally.route = checked_route(table, call.asked.model, call.endpoint)
            target = self._balance.take(route.targets, frozenset(tried | turned_away))
            if target is None:
                if not turned_away or tried or not await self._looks_again(table.version, give_up_at):
                    break
                turned_away.clear()
                failure = None
                continue
            try:
                await self._attempt(call, route, target, send)
                return
            except _TurnedAway as error:
                turned_away.add(target.spawn)
                failure = error.failure
            except _TryAnother as error:
                tried.add(target.spawn)
                failure = error.failure
            finally:
                self._balance.release(target)
        if failure is None:
            self._balance.unmet(call.asked.model)
            failure = refusals.not_ready(route)
        raise failure

    def gives_one(self, model: str) -> bool:
        """Return whether the engine of `model` has no notion of several choices: it refuses `n` by its dialect."""
        route = self._table().routes.get(model)
        dialect = self._dialect_of(route.engine) if route is not None else None
        return dialect is not None and "n" in dialect.refused

    async def _looks_again(self, version: int, give_up_at: float) -> bool:
        """Wait for another table than `version`, or a little; return whether there is time for another look.

        Without another table too: a node that was cut off for a moment takes requests again by its next heartbeat.
        """
        left_s = give_up_at - self._clock.monotonic()
        if left_s <= 0:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_LOOK_AGAIN_S, left_s)):
                await self._table_after(version)
        return True

    async def _attempt(self, call: Call, route: Route, target: Target, send: Send) -> None:
        call.tally.target = target
        call.tally.attempts += 1
        dialect = self._dialect_of(route.engine)
        said = words.words(call.endpoint, call.body, call.asked, route, dialect)
        request = engine_request(call, target, dialect, said.body)
        reply, first = await self._first_bytes(target, request, route.public_name)
        try:
            if target.plane is not None and (fault := reply.header(b"x-slice-fault")):
                raise self._fault(target, fault, route.public_name)
            if reply.status != 200:
                body = await self._error_body(reply, first)
                raise _retried(self.failure_of(call, route, reply.status, body))
            headers = [(b"x-slice-replica", target.replica_id.encode())]
            served = route.served_name if target.origin is None else None
            name = stream.ModelName(served, route.public_name, dialect.name_tag if dialect else "")
            if said.stream_type and reply.header(b"content-type").startswith(said.stream_type):
                passage = _Passage(self, call, route, reply, send, said.events(name), headers)
                await passage.run(first)
            else:
                await self._whole(call, route, reply, first, send, partial(said.whole, name), headers)
        finally:
            reply.close()

    def _fault(self, target: Target, fault: bytes, model: str) -> Exception:
        """Return what an answer of a data plane's own means: it is never the engine's, and never shown."""
        if fault == b"timeout":
            return refusals.timed_out(model, self._timeouts.first_byte_s)
        if fault == b"unreachable":
            self._balance.refused(target)
            return _TryAnother(refusals.unreachable(model))
        return _TurnedAway(refusals.unreachable(model)) if fault in _TURNS_AWAY else _TryAnother(refusals.died(model))

    async def _first_bytes(self, target: Target, request: Request, model: str) -> tuple[Reply, bytes]:
        try:
            async with asyncio.timeout(self._timeouts.first_byte_s):
                reply = await self._pool.exchange(target.address, request)
                try:
                    return reply, await reply.read()
                except BaseException:
                    reply.close()
                    raise
        except TimeoutError:
            raise refusals.timed_out(model, self._timeouts.first_byte_s) from None
        except EngineUnreachable as error:
            self._balance.refused(target)
            raise _TryAnother(refusals.unreachable(model)) from error
        except EngineDied as error:
            raise _TryAnother(refusals.died(model)) from error

    async def _error_body(self, reply: Reply, first: bytes) -> bytes:
        body = first
        try:
            async with asyncio.timeout(self._timeouts.idle_s):
                while len(body) < MAX_ERROR_BYTES and (piece := await reply.read()):
                    body += piece
        except (TimeoutError, EngineDied):
            return body  # the status says enough
        return body

    async def _whole(
        self,
        call: Call,
        route: Route,
        reply: Reply,
        first: bytes,
        send: Send,
        restored: Callable[[bytes], bytes],
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        pieces, size, piece = [first], len(first), first
        try:
            while piece:
                async with asyncio.timeout(self._timeouts.idle_s):
                    piece = await reply.read()
                pieces.append(piece)
                size += len(piece)
                if size > MAX_WHOLE_BYTES:
                    raise EngineDied("an endless answer")
            body = restored(b"".join(pieces))
        except TimeoutError:
            raise refusals.timed_out(route.public_name, self._timeouts.idle_s) from None
        except words.ErrorInside as error:
            raise _retried(self.failure_of(call, route, 200, error.body)) from error
        except EngineDied as error:
            raise _TryAnother(refusals.died(route.public_name)) from error
        seen = 0 if call.endpoint is Endpoint.EMBEDDINGS else len(body) // counts.BYTES_PER_TOKEN
        counts.note(call.tally, counts.of_answer(body), call.body, seen)
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
        headers.append(self.processing_header(call))
        self.note_first_byte(call)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def note_first_byte(self, call: Call) -> None:
        """Note in the tally that the answer's first byte goes out now."""
        call.tally.first_byte_s = self._clock.monotonic() - call.started_s

    def processing_header(self, call: Call) -> tuple[bytes, bytes]:
        """Return `openai-processing-ms`: from the request's arrival until now."""
        return b"openai-processing-ms", str(round((self._clock.monotonic() - call.started_s) * 1000)).encode()

    def failure_of(self, call: Call, route: Route, status: int, body: bytes) -> Failure:
        """Return our failure for an engine's error reply, or for the error event of a stream (status 200)."""
        dialect = self._dialect_of(route.engine) or Dialect(paths={})
        return errors.engine_failure(
            status,
            body,
            dialect.overflow_types,
            route.public_name,
            overflow_phrases=dialect.overflow_phrases,
            refusal_phrases=dialect.refusal_phrases,
            content=requests.CONTENT[call.endpoint],
        )

    @property
    def idle_s(self) -> float:
        """Longest silence inside a stream, seconds."""
        return self._timeouts.idle_s


class _Passage:
    """One event stream: the loop that reads, passes on and ends it well."""

    def __init__(
        self,
        relay: Relay,
        call: Call,
        route: Route,
        reply: Reply,
        send: Send,
        events: stream.Events,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._relay = relay
        self._call = call
        self._route = route
        self._reply = reply
        self._send = send
        self._events = events
        self._headers = headers
        self._is_started = False
        self._is_reading = False
        self._is_empty = False

    async def run(self, first: bytes) -> None:
        """Pass the stream on until it ends, and end it with `[DONE]` or with an error event.

        Raises:
            _TryAnother: it broke before anything was sent.
            ClientStalled: the client stopped reading.
        """
        try:
            await self._run(first)
        finally:
            if self._is_started:
                is_done = self._events.engine_error is None and self._events.ending() is stream.Ending.DONE
                self._call.tally.is_whole = is_done
                counts.note(self._call.tally, self._events.counts, self._call.body, self._events.chunks)

    async def _run(self, first: bytes) -> None:
        failure: Failure | None = None
        try:
            await self._pass_all(first)
        except EngineDied:
            if self._is_empty or self._events.ending() is not stream.Ending.DONE:
                failure = refusals.died(self._route.public_name)
        except TimeoutError:
            if not self._is_reading:
                raise ClientStalled from None
            failure = refusals.timed_out(self._route.public_name, self._relay.idle_s)
        if self._events.engine_error is not None:
            failure = self._relay.failure_of(self._call, self._route, 200, self._events.engine_error)
        if failure is None and self._events.ending() is stream.Ending.CUT:
            failure = refusals.died(self._route.public_name)
        if failure is not None and not self._is_started:
            raise _retried(failure)
        await self._end(failure)

    async def _pass_all(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as deadline:
            while data:
                self._is_reading = False
                deadline.reschedule(loop.time() + WRITE_STALL_S)
                await self._pass(self._events.feed(data))
                if self._events.engine_error is not None:
                    return
                self._is_reading = True
                deadline.reschedule(loop.time() + self._relay.idle_s)
                data = await self._reply.read()
            await self._pass(self._events.finish())

    async def _pass(self, data: bytes, *, is_last: bool = False) -> None:
        if not self._is_started and (data or is_last):
            if stream.is_only_done(data):
                self._is_empty = True
                raise EngineDied("an end without a beginning")
            self._is_started = True
            self._relay.note_first_byte(self._call)
            headers = [*EVENT_STREAM_HEADERS, *self._headers, self._relay.processing_header(self._call)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if data or is_last:
            await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def _end(self, failure: Failure | None) -> None:
        last = b""
        if failure is not None:
            self._call.tally.code = failure.code
            last = self._events.separator() + errors.error_event(failure)
        elif self._events.ending() is stream.Ending.FINISHED:
            last = self._events.separator() + stream.DONE
        try:
            async with asyncio.timeout(WRITE_STALL_S):
                await self._pass(last, is_last=True)
        except TimeoutError:
            raise ClientStalled from None


def checked_route(table: Table, model: str, endpoint: Endpoint) -> Route:
    """Return the route of `model`, which is enabled and serves `endpoint`.

    Raises:
        Failure: `registry.model_not_found`, `door.model_disabled` or `door.endpoint_unsupported`.
    """
    route = table.routes.get(model)
    if route is None or route.is_hidden:
        raise refusals.unknown_model(table, model)
    if route.disabled:
        raise refusals.disabled(route)
    if endpoint.value not in route.endpoints:
        raise Failure(
            "door.endpoint_unsupported",
            f"Model '{model}' does not serve {endpoint.value}",
            hint=f"it serves {', '.join(sorted(route.endpoints)) or 'nothing'}",
            param="model",
        )
    return route


def engine_request(call: Call, target: Target, dialect: Dialect | None, body: bytes) -> Request:
    """Return what goes to the engine: `body`, our path and key, and those of the client's headers that it may see."""
    path = dialect.paths.get(call.endpoint) if dialect else None
    accept = b"text/event-stream" if call.asked.is_stream else b"application/json"
    headers = [(b"content-type", b"application/json"), (b"accept", accept), *call.headers]
    if target.engine_key:
        headers.append((b"authorization", b"Bearer " + target.engine_key.encode()))
    return Request(
        method="POST",
        path=path or OPENAI_PATHS[call.endpoint],
        headers=headers,
        body=body,
    )


def _retried(failure: Failure) -> Exception:
    is_other_replicas_chance = failure.code in ("door.engine_busy", "door.engine_failed")
    return _TryAnother(failure) if is_other_replicas_chance else failure
