"""The items of a response while they grow: a message, thoughts, a call of a function. Called by `answers`. Pure.

Each step returns its events and the number of the next one. The frequent ones, pieces of text, are put together from
bytes made once.
"""

from typing import Any

import msgspec

from gateway.responses.chunks import CallPiece

_encode = msgspec.json.Encoder().encode
Told = tuple[bytes, int]
"""Events, and the number of the next one."""


def event(kind: str, number: int, members: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    data = _encode({"type": kind, "sequence_number": number, **members})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


class Item:
    """One item of the output at `place`; `value` is what it is by now."""

    prefix = ""

    def __init__(self, place: int, token: str) -> None:
        self.place = place
        self.id = f"{self.prefix}_{token}{place:02x}"
        self.value: dict[str, Any] = {"id": self.id, "status": "in_progress"}

    def added(self, number: int) -> Told:
        """Return the events that open it."""
        data = event("response.output_item.added", number, {"output_index": self.place, "item": self.value})
        return data, number + 1

    def done(self, number: int, status: str) -> Told:
        """Return the events that end it, with `status`."""
        self.value["status"] = status
        data = event("response.output_item.done", number, {"output_index": self.place, "item": self.value})
        return data, number + 1

    def at(self, **members: Any) -> dict[str, Any]:
        """Return the members of an event of this item."""
        return {"item_id": self.id, "output_index": self.place, **members}


class _Text(Item):
    """An item of one part of text that grows."""

    delta_kind = ""
    done_kind = ""

    def __init__(self, place: int, token: str) -> None:
        super().__init__(place, token)
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._head = b""

    def part(self, text: str) -> dict[str, Any]:
        """Return the part that holds `text`."""
        raise NotImplementedError

    def added(self, number: int) -> Told:
        self.value["content"] = []
        data, number = super().added(number)
        part = event("response.content_part.added", number, self.at(content_index=0, part=self.part("")))
        start = {"type": self.delta_kind, **self.at(content_index=0)}
        self._head = b"event: " + self.delta_kind.encode() + b"\ndata: " + _encode(start)[:-1] + b',"delta":'
        return data + part, number + 1

    def said(self, text: str, number: int, logprobs: list[dict[str, Any]]) -> Told:
        """Return the event of a piece of text."""
        self._pieces.append(text)
        self._logprobs += logprobs
        tail = self._tail(logprobs) + b',"sequence_number":%d}\n\n' % number
        return self._head + _encode(text) + tail, number + 1

    def done(self, number: int, status: str) -> Told:
        text = "".join(self._pieces)
        part = self.part(text)
        self.value["content"] = [part]
        members = self.at(content_index=0, text=text, **self._more())
        data = event(self.done_kind, number, members)
        data += event("response.content_part.done", number + 1, self.at(content_index=0, part=part))
        last, number = super().done(number + 2, status)
        return data + last, number

    def _tail(self, logprobs: list[dict[str, Any]]) -> bytes:
        return b""

    def _more(self) -> dict[str, Any]:
        return {}


class Message(_Text):
    """What the model says."""

    prefix = "msg"
    delta_kind = "response.output_text.delta"
    done_kind = "response.output_text.done"

    def __init__(self, place: int, token: str) -> None:
        super().__init__(place, token)
        self.value |= {"type": "message", "role": "assistant", "content": []}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs if text else []}

    def _tail(self, logprobs: list[dict[str, Any]]) -> bytes:
        return b',"logprobs":' + (_encode(logprobs) if logprobs else b"[]")

    def _more(self) -> dict[str, Any]:
        return {"logprobs": self._logprobs}


class Reasoning(_Text):
    """What the model thinks, where the engine tells it apart."""

    prefix = "rs"
    delta_kind = "response.reasoning_text.delta"
    done_kind = "response.reasoning_text.done"

    def __init__(self, place: int, token: str) -> None:
        super().__init__(place, token)
        self.value |= {"type": "reasoning", "summary": [], "content": []}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class ToolCall(Item):
    """A call of a function: it is told from its first argument on, when its name is whole."""

    prefix = "fc"

    def __init__(self, place: int, token: str) -> None:
        super().__init__(place, token)
        call_id = f"call_{token}{place:02x}"
        self.value |= {"type": "function_call", "call_id": call_id, "name": "", "arguments": ""}
        self._is_told = False
        self._more = ""

    def take(self, piece: CallPiece) -> None:
        """Take a piece in."""
        if piece.id and not self._is_told:
            self.value["call_id"] = piece.id
        if piece.function is not None:
            if not self._is_told:
                self.value["name"] += piece.function.name or ""
            self._more += piece.function.arguments or ""

    def said(self, number: int) -> Told:
        """Return the events of what was taken in, nothing while its name may still grow."""
        if not self._more:
            return b"", number
        data = b""
        if not self._is_told:
            data, number = self._opened(number)
        piece, self._more = self._more, ""
        self.value["arguments"] += piece
        data += event("response.function_call_arguments.delta", number, self.at(delta=piece))
        return data, number + 1

    def done(self, number: int, status: str) -> Told:
        data, number = (b"", number) if self._is_told else self._opened(number)
        members = self.at(name=self.value["name"], arguments=self.value["arguments"])
        data += event("response.function_call_arguments.done", number, members)
        last, number = super().done(number + 1, status)
        return data + last, number

    def _opened(self, number: int) -> Told:
        self._is_told = True
        return self.added(number)
