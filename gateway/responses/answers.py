"""A chat's answer as a response. Comes in: what the relay writes, a stream cut anywhere or a whole answer. Goes out:
typed events with a number each, or one object. Called by `passage`. Sans-I/O: time comes from the clock it is given.

A stream ends with exactly one of `response.completed`, `response.incomplete` and `response.failed`. One item is open at
a time, and is done before the next is added, as with OpenAI. It must not make up what the engine did not say.

Source: https://github.com/openai/openai-openapi (`ResponseStreamEvent`).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from core.clock import Clock
from core.errors import Failure
from gateway import refusals
from gateway.openai.stream import MAX_LINE_BYTES
from gateway.responses import chunks
from gateway.responses.output import Item, Message, Reasoning, ToolCall, event

_PREFIX, _DONE = b"data:", b"[DONE]"
_CUT: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""The ends of a chat that leave a response incomplete."""
_encode = msgspec.json.Encoder().encode


class Writer:
    """The answer to one request: `echo` is what it repeats of it, `token` a random text that its identifiers hold.

    `failure` is set once the stream has ended with an error that came from here: a chunk that is none.
    """

    def __init__(self, echo: Mapping[str, Any], *, token: str, clock: Clock) -> None:
        self.failure: Failure | None = None
        self._echo = echo
        self._token = token
        self._clock = clock
        self._created = int(clock.now().timestamp())
        self._number = 0
        self._held = b""
        self._items: list[Item] = []
        self._open: Item | None = None
        self._calls: dict[int, ToolCall] = {}
        self._reason: str | None = None
        self._usage: chunks.Usage | None = None
        self._is_ended = False

    def feed(self, data: bytes) -> bytes:
        """Return the events of every whole line in what came."""
        *lines, self._held = (self._held + data if self._held else data).split(b"\n")
        if len(self._held) > MAX_LINE_BYTES:
            return self._broken()
        return b"".join([self._line(line) for line in lines if line.startswith(_PREFIX)])

    def finish(self) -> bytes:
        """Return what is still to be told when the relay has ended its stream."""
        rest, self._held = self._held, b""
        return (self._line(rest) if rest.startswith(_PREFIX) else b"") + self._end()

    def whole(self, body: bytes) -> bytes:
        """Return a whole answer as one object.

        Raises:
            Failure: `door.engine_failed`: it is none.
        """
        self._take_whole(body)
        self._done()
        return _encode(self._response(self._status()))

    def replayed(self, body: bytes) -> bytes:
        """Return a whole answer as the events of a stream, for an engine that does not stream.

        Raises:
            Failure: `door.engine_failed`: it is none.
        """
        return self._take_whole(body) + self._end()

    def _take_whole(self, body: bytes) -> bytes:
        try:
            found = chunks.decode(body)
        except chunks.WRONG:
            found = chunks.Event()
        if not found.choices:
            raise refusals.died(self._echo["model"])
        return self._begin() + self._take(found)

    def _line(self, line: bytes) -> bytes:
        data = line[len(_PREFIX) :].strip()
        if self._is_ended or not data:
            return b""
        if data == _DONE:
            return self._end()
        try:
            found = chunks.decode(data)
        except chunks.WRONG:
            return self._broken()
        begun = self._begin()
        if found.error is not None:
            return begun + self._fail(found.error.message)
        return begun + self._take(found)

    def _begin(self) -> bytes:
        if self._number:
            return b""
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _take(self, found: chunks.Event) -> bytes:
        if found.usage is not None:
            self._usage = found.usage
        if not found.choices:
            return b""
        choice = found.choices[0]
        self._reason = choice.finish_reason or self._reason
        said = choice.delta or choice.message
        if said is None:
            return b""
        told = b""
        thought = said.reasoning_content or said.reasoning
        if thought:
            told += self._told(Reasoning, thought)
        if said.content:
            tokens = choice.logprobs.content or [] if choice.logprobs is not None else []
            told += self._told(Message, said.content, [one.told() for one in tokens])
        for place, piece in enumerate(said.tool_calls or ()):
            told += self._call(piece.index if piece.index is not None else place, piece)
        return told

    def _told(self, kind: type[Message | Reasoning], text: str, logprobs: list[dict[str, Any]] | None = None) -> bytes:
        """Return the events of a piece of text, in the open item if it is of its kind."""
        told, item = b"", self._open
        if not isinstance(item, kind):
            item = kind(len(self._items), self._token)
            told = self._add(item)
        data, self._number = item.said(text, self._number, logprobs or [])
        return told + data

    def _call(self, place: int, piece: chunks.CallPiece) -> bytes:
        told = b""
        call = self._calls.get(place)
        if call is None:
            told = self._close()
            call = self._calls[place] = ToolCall(len(self._items), self._token)
            self._items.append(call)
            self._open = call
        elif call is not self._open:
            return self._broken()  # it was told as done
        call.take(piece)
        data, self._number = call.said(self._number)
        return told + data

    def _add(self, item: Item) -> bytes:
        told = self._close()
        self._items.append(item)
        self._open = item
        data, self._number = item.added(self._number)
        return told + data

    def _close(self, status: str = "completed") -> bytes:
        """Return the events that end the open item."""
        item, self._open = self._open, None
        if item is None:
            return b""
        data, self._number = item.done(self._number, status)
        return data

    def _done(self) -> bytes:
        """Return the events that end the last item; an answer of nothing is an empty message."""
        told = b""
        if not self._items:
            told = self._add(Message(0, self._token))
        return told + self._close("incomplete" if self._reason in _CUT else "completed")

    def _end(self) -> bytes:
        if self._is_ended:
            return b""
        if self._reason is None:
            return self._broken()  # the relay ends no stream so
        self._is_ended = True
        told = self._done()
        status = self._status()
        return told + self._event(f"response.{status}", response=self._response(status))

    def _broken(self) -> bytes:
        self.failure = refusals.died(self._echo["model"])
        return self._begin() + self._fail(str(self.failure))

    def _fail(self, message: str) -> bytes:
        self._is_ended = True
        told = self._close("incomplete")
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": message}
        return told + self._event("response.failed", response=response)

    def _status(self) -> str:
        return "incomplete" if self._reason in _CUT else "completed"

    def _event(self, kind: str, **members: Any) -> bytes:
        data = event(kind, self._number, members)
        self._number += 1
        return data

    def _response(self, status: str) -> dict[str, Any]:
        cut = _CUT.get(self._reason or "") if status == "incomplete" else None
        response = {
            "id": f"resp_{self._token}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "completed_at": int(self._clock.now().timestamp()) if status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": cut} if cut else None,
            "output": [item.value for item in self._items],
            **self._echo,
        }
        if self._usage is not None:
            response["usage"] = self._usage.told()
        return response
