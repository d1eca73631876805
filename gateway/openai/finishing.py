"""Answers that end otherwise than OpenAI's: in words of the engine's own, or with the stop string still at their end.

Comes in: an engine's answer, whole or as events cut anywhere, and what the request asked for. Goes out: the same with
OpenAI's finish reasons and without the stop string. Sans-I/O; called by `words` for dialects that say so, since each
chunk is decoded and encoded again. It must not hold back more of a stream than what may be a stop string or its
beginning, and must not lose what it holds when the engine breaks off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from adapters.contract import Dialect
from gateway.openai import stream
from gateway.usage.counts import Counts

_decode_event = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
_PREFIX, _DONE = b"data:", b"[DONE]"


class _Request(msgspec.Struct):
    stop: str | list[str] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """What is to be changed: `reasons` from the engine's word to OpenAI's, `stops` are cut off where a text ends."""

    reasons: Mapping[str, str | None]
    stops: tuple[str, ...] = ()

    def whole(self, body: bytes) -> bytes:
        """Return an answer that is no stream; as it is when it is no JSON object with choices."""
        try:
            answer = _decode_event(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return body
        choices = _choices(answer)
        for choice in choices:
            self.end(choice, [choice])
        return _encode(answer) if choices else body

    def end(self, last: dict[str, Any], parts: list[dict[str, Any]]) -> None:
        """Give `last`, which has a finish reason, OpenAI's word, and cut a stop string off the texts of `parts`.

        A text that ends with a stop string was ended by it, whatever the engine names as the reason: it may have
        reached its limit with the same token.
        """
        reason = last.get("finish_reason")
        if isinstance(reason, str):
            last["finish_reason"] = self.reasons.get(reason, reason)
        text = "".join(map(_text, parts))
        surplus = max((len(stop) for stop in self.stops if text.endswith(stop)), default=0)
        if surplus:
            last["finish_reason"] = "stop"
        for part in reversed(parts):
            kept = _text(part)
            cut = min(surplus, len(kept))
            if cut:
                _set_text(part, kept[: len(kept) - cut])
            surplus -= cut

    def uncertain(self, text: str) -> int:
        """Return how many characters at the end of `text` may be a stop string or its beginning."""
        longest = max(map(len, self.stops), default=0)
        for length in range(min(len(text), longest), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0


def finishing(body: bytes, dialect: Dialect) -> Finishing | None:
    """Return what the answer to the request `body` needs, None when the engine of `dialect` ends as OpenAI's."""
    if not dialect.finish_reasons and not dialect.keeps_stop:
        return None
    try:
        stop = _decode_request(body).stop if dialect.keeps_stop else None
    except msgspec.ValidationError:
        stop = None  # no text: the engine refuses it
    stops = [stop] if isinstance(stop, str) else stop or []
    return Finishing(reasons=dialect.finish_reasons, stops=tuple(one for one in stops if one))


class FinishedStream:
    """The relay's view of a stream whose end is changed; behind it lies the one of the bytes as they come."""

    def __init__(self, passed: stream.EventStream, wanted: Finishing) -> None:
        self._passed = passed
        self._wanted = wanted
        self._rest = b""
        self._held: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}  # (event, its choice) by choice

    @property
    def engine_error(self) -> bytes | None:
        """The JSON of the engine's error event once one came."""
        return self._passed.engine_error

    @property
    def counts(self) -> Counts | None:
        """The tokens that the engine told of."""
        return self._passed.counts

    @property
    def chunks(self) -> int:
        """How many pieces of an answer came."""
        return self._passed.chunks

    def feed(self, data: bytes) -> bytes:
        """Return the events that may go to the client now."""
        told = self._told(self._passed.feed(data))
        return told if self.engine_error is None else told + self._given_up()

    def finish(self) -> bytes:
        """Return what is still held when the engine ended its reply in order."""
        told = self._told(self._passed.finish())
        rest, self._rest = self._rest, b""
        return told + rest + self._given_up()

    def ending(self) -> stream.Ending:
        """Return how the stream ended."""
        return self._passed.ending()

    def separator(self) -> bytes:
        """Return what is still held: events are passed on whole, so another may follow at once."""
        return self._given_up()

    def _told(self, data: bytes) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > stream.MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return b"".join(map(self._line, lines))

    def _line(self, line: bytes) -> bytes:
        line = line.rstrip(b"\r")
        if not line.startswith(_PREFIX):
            # A comment stands alone; any other field belongs to the event that follows.
            return line and line + (b"\n\n" if line.startswith(b":") else b"\n")
        data = line[len(_PREFIX) :].strip()
        if data == _DONE:
            return self._given_up() + stream.DONE
        try:
            event = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _event_of(data)
        found = _choices(event)
        return b"".join(map(_written, self._added(event, found[0]))) if len(found) == 1 else _written(event)

    def _added(self, event: dict[str, Any], choice: dict[str, Any]) -> list[dict[str, Any]]:
        """Hold `event` and return those of its choice that are certain now."""
        held = self._held.setdefault(_index(choice), [])
        held.append((event, choice))
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            if self._wanted.reasons.get(reason, reason):
                self._wanted.end(choice, [part for _, part in held])
                return self._released(held, len(held))
            choice["finish_reason"] = None
        texts = [_text(part) for _, part in held]
        uncertain = self._wanted.uncertain("".join(texts))
        kept = 0
        while uncertain > 0:
            kept += 1
            uncertain -= len(texts[-kept])
        return self._released(held, len(held) - kept)

    @staticmethod
    def _released(held: list[tuple[dict[str, Any], dict[str, Any]]], count: int) -> list[dict[str, Any]]:
        released = [event for event, _ in held[:count]]
        del held[:count]
        return released

    def _given_up(self) -> bytes:
        """Return everything held: no more comes that could make a stop string of it."""
        held = [event for one in self._held.values() for event in self._released(one, len(one))]
        return b"".join(map(_written, held))


def _written(event: dict[str, Any]) -> bytes:
    return _event_of(_encode(event))


def _event_of(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _choices(answer: dict[str, Any]) -> list[dict[str, Any]]:
    found = answer.get("choices")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _place(choice: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the object that holds the choice's text, and under which name."""
    for name in ("delta", "message"):
        holder = choice.get(name)
        if isinstance(holder, dict):
            return holder, "content"
    return choice, "text"


def _text(choice: dict[str, Any]) -> str:
    holder, name = _place(choice)
    text = holder.get(name)
    return text if isinstance(text, str) else ""


def _set_text(choice: dict[str, Any], text: str) -> None:
    holder, name = _place(choice)
    holder[name] = text
