"""The front door as a raw ASGI application: finds the surface of a path, lets it answer, and keeps the books.

Comes in: ASGI calls of Serve's or a bare uvicorn's server. Goes out: answers, and each visit that has ended. Built by
`door.Door`. It must not hold facts of its own (the table, the counts and the connections belong to others), log what
people write, or add `x-request-id` (Serve's middleware does).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from core.clock import Clock
from core.errors import Failure
from core.infra.logs import Log
from gateway.body import discard_body
from gateway.visit import Answer, ClientGone, ClientStalled, Receive, Scope, Send, Surface, Visit

CLIENT_GONE = "client.gone"
CLIENT_STALLED = "client.stalled"
"""What stands in a tally's `code` when the client ended its request; no answer carries them."""


class DoorApp:
    """One door; the first of `surfaces` that owns a path answers it, the last owns all.

    `on_start` and `on_stop` start and stop what works in the background; `on_end` hears of each visit once, when it has
    ended, and must be quick.
    """

    def __init__(
        self,
        *,
        surfaces: Sequence[Surface],
        clock: Clock,
        log: Log,
        on_start: Callable[[], Awaitable[None]],
        on_stop: Callable[[], Awaitable[None]],
        on_end: Callable[[Visit], None] = lambda _: None,
    ) -> None:
        self._surfaces = surfaces
        self._clock = clock
        self._log = log
        self._on_start = on_start
        self._on_stop = on_stop
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the process's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(Visit(scope, receive, send, self._clock.monotonic()))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._on_start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._on_stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, visit: Visit) -> None:
        path = visit.path
        surface = next(one for one in self._surfaces if one.owns(path) or one is self._surfaces[-1])
        try:
            await self._answered(surface, visit)
        finally:
            self._on_end(visit)

    async def _answered(self, surface: Surface, visit: Visit) -> None:
        failure: Failure
        try:
            await surface.handler(visit.method, visit.path)(visit)
            return
        except Failure as error:
            failure = error
        except ClientGone:
            visit.tally.code = CLIENT_GONE
            return
        except ClientStalled:
            visit.tally.code = CLIENT_STALLED
            self._log.info("client_stalled", path=visit.path)
            return
        except asyncio.CancelledError:
            visit.tally.code = visit.tally.code or CLIENT_GONE  # whoever ends it, nobody reads it any more
            raise
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request
            self._log.error("request_failed", path=visit.path, exc=error)
            failure = Failure("internal.unexpected", "unexpected")
        visit.tally.code = failure.code
        if failure.code == "request.body_too_large" and visit.header(b"expect") is None:
            await discard_body(visit.receive)
        if not visit.has_begun:
            await visit.answer(_closing(surface.refusal(visit, failure), failure))


def _closing(answer: Answer, failure: Failure) -> Answer:
    """Return `answer` so that its connection closes when what may still come of the body is not read."""
    if failure.code not in ("request.body_too_large", "request.body_timeout"):
        return answer
    return Answer(status=answer.status, body=answer.body, headers=[*answer.headers, (b"connection", b"close")])
