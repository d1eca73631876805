"""One request for several choices, as several requests for one: to any replicas, and back as one answer.

Comes in: a call with `n` above 1, the relay, and ASGI's `send`. Goes out: one answer, or a `Failure` while nothing was
sent. Called by `surface.carry`. One part that fails fails all: the others' engines are told at once, a stream ends with
an error event. A part is tried again by the relay as long as nothing of that part has gone out.
"""

import asyncio
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from core.errors import Failure
from gateway import refusals
from gateway.openai import choices, errors
from gateway.relay import WRITE_STALL_S, Call, Relay
from gateway.visit import ClientStalled, Headers, Send, Tally

_SUMMED = ("input_tokens", "output_tokens", "cached_tokens")


class _Ended(Exception):
    """Another part has ended the answer, or this one has; the reason is noted."""


async def answer(relay: Relay, call: Call, send: Send) -> None:
    """Send the answer to `call`, which asks for several choices, from an engine that gives one at a time.

    Raises:
        Failure: a part got no answer; nothing was sent.
        ClientStalled: the client stopped reading.
    """
    await _Fan(relay, call, send).run()


class _Fan:
    def __init__(self, relay: Relay, call: Call, send: Send) -> None:
        self._relay = relay
        self._call = call
        self._send = send
        count = call.asked.choices
        asked = msgspec.structs.replace(call.asked, choices=1)
        self._calls = [
            replace(call, asked=asked, body=body, tally=Tally(endpoint=call.tally.endpoint, model=call.tally.model))
            for body in choices.parts(call.body, count)
        ]
        self._braid = choices.Braid(count)
        self._writing = asyncio.Lock()
        self._has_begun = False
        self._error: Failure | ClientStalled | None = None
        self._event = b""
        self._parts: list[_Part] = []

    async def run(self) -> None:
        """Ask all, and tell what they answer."""
        self._parts = [_Part(self, self._braid.strand(place), one) for place, one in enumerate(self._calls)]
        try:
            async with asyncio.TaskGroup() as group:
                for part in self._parts:
                    group.create_task(self._ask(part))
        except* _Ended:
            pass
        finally:
            _note(self._call.tally, [one.tally for one in self._calls])
        if self._error is not None and not self._has_begun:
            raise self._error
        if isinstance(self._error, ClientStalled):
            raise self._error
        await self._end()

    async def _ask(self, part: "_Part") -> None:
        try:
            await self._relay.answer(part.call, part)
        except (Failure, ClientStalled) as error:
            self._error = self._error or error
            raise _Ended from None

    async def begin(self, headers: Headers) -> None:
        """Begin the stream, if no other part has."""
        async with self._writing:
            if not self._has_begun:
                self._has_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def tell(self, data: bytes) -> None:
        """Send events."""
        async with self._writing:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def give_up(self, failure: Failure, event: bytes) -> _Ended:
        """Note that the answer ends with `failure`, told by `event`; return what ends the part that says so."""
        if self._error is None:
            self._error, self._event = failure, event
        return _Ended()

    def nonsense(self) -> Failure:
        """Return the failure for an answer that is none."""
        return refusals.died(self._call.asked.model)

    async def _end(self) -> None:
        if not self._call.asked.is_stream:
            await self._tell_whole()
            return
        last = self._braid.end()
        if isinstance(self._error, Failure):
            self._call.tally.code = self._error.code
            last = self._event or errors.error_event(self._error)
        try:
            async with asyncio.timeout(WRITE_STALL_S):
                await self._send({"type": "http.response.body", "body": last, "more_body": False})
        except TimeoutError:
            raise ClientStalled from None

    async def _tell_whole(self) -> None:
        try:
            body = choices.joined([part.body for part in self._parts])
        except choices.WRONG:
            raise self.nonsense() from None
        kept = [(name, value) for name, value in self._parts[0].headers if name != b"content-length"]
        headers = [*kept, (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _Part:
    """The ASGI `send` of one of the requests."""

    def __init__(self, fan: _Fan, strand: choices.Strand, call: Call) -> None:
        self.call = call
        self.headers: Headers = []
        self.body = b""
        self._fan = fan
        self._strand = strand

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Take the next message of this part's answer."""
        if message["type"] == "http.response.start":
            self.headers = message["headers"]
            if self.call.asked.is_stream:
                if not dict(self.headers).get(b"content-type", b"").startswith(b"text/event-stream"):
                    raise self._broken()
                await self._fan.begin(self.headers)
        elif not self.call.asked.is_stream:
            self.body += message.get("body", b"")
        else:
            await self._pass(message.get("body", b""))

    async def _pass(self, data: bytes) -> None:
        try:
            events = self._strand.feed(data)
        except choices.WRONG:
            raise self._broken() from None
        if events:
            await self._fan.tell(events)
        if self._strand.failure is not None:
            # In our words already: the relay wrote it.
            failure = Failure(self.call.tally.code or "door.engine_failed", "a part of the answer broke off")
            raise self._fan.give_up(failure, b"data: " + self._strand.failure + b"\n\n")

    def _broken(self) -> _Ended:
        failure = self._fan.nonsense()
        return self._fan.give_up(failure, errors.error_event(failure))


def _note(tally: Tally, of_parts: Sequence[Tally]) -> None:
    """Note in `tally` what the parts of its answer were, and used together."""
    last = next((one for one in reversed(of_parts) if one.target is not None), of_parts[-1])
    tally.route, tally.target = last.route, last.target
    tally.attempts = sum(one.attempts for one in of_parts)
    tally.first_byte_s = min((one.first_byte_s for one in of_parts if one.first_byte_s is not None), default=None)
    for name in _SUMMED:
        told = [value for one in of_parts if (value := getattr(one, name)) is not None]
        setattr(tally, name, sum(told) if told else None)
    tally.is_estimated = any(one.is_estimated for one in of_parts)
    tally.is_whole = all(one.is_whole for one in of_parts)
