"""A server-sent event stream on its way through: bytes as they come, whole lines only, watched at its end.

Comes in: pieces of an engine's event stream, cut anywhere. Goes out: the same bytes, cut at line ends, with the
engine's model name turned back into the public one where they differ; an error event of the engine is caught instead
of passed. Sans-I/O; the relay feeds it. It must not parse events (but those that mention an error), join them, or wait
for more than the line's end: a line that is never finished is never sent, so a client reads no half event when an
engine dies.
"""

import re
from enum import StrEnum
from typing import Protocol

import msgspec

from gateway.usage.counts import Counts, of_event

TAIL_BYTES = 4096
"""How much of the end is kept to see how the stream ended; a last chunk with usage is under 1 KiB."""
MAX_LINE_BYTES = 4 * 1024**2
"""A longer line is passed on unfinished: better than holding a whole answer back."""
DONE = b"data: [DONE]\n\n"
# Engines report a failure inside a stream as {"error": ...}, {"object": "error", ...} or, older llama.cpp, `error: {`.
# OpenRouter and others put "error" beside other members, so a line that mentions it is decoded where that is open.
_MENTIONS_ERROR = re.compile(rb'^(?:data: ?(\{.*"error".*)|error: ?(\{.*))$', re.MULTILINE)
_OPENS_WITH_ERROR = re.compile(rb'\{ ?"(?:error" ?: ?["{]|object" ?: ?"error")')
_HAS_DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
# TGI says "" in every chunk of a completion but the last.
_HAS_FINISH = re.compile(rb'"finish_reason" ?: ?"[^"]')
_ONLY_DONE = re.compile(rb"^[\r\n]*data: ?\[DONE\][\r\n]*\Z")
_ANY_NAME = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*"(?:[^"\\]|\\.)*"')
_encode = msgspec.json.Encoder().encode


class _Event(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode_event = msgspec.json.Decoder(_Event).decode


class Ending(StrEnum):
    """How a stream ended, seen from its last lines."""

    DONE = "done"  # with [DONE]
    FINISHED = "finished"  # a finish reason was given, only [DONE] is missing
    CUT = "cut"  # in the middle of an answer


class Events(Protocol):
    """The relay's view of one stream."""

    @property
    def engine_error(self) -> bytes | None:
        """The JSON of an error inside it once one came."""

    @property
    def counts(self) -> Counts | None:
        """The tokens that the engine told of, None while it told of none."""

    @property
    def chunks(self) -> int:
        """How many pieces of an answer came: about as many as tokens."""

    def feed(self, data: bytes) -> bytes:
        """Return what may go to the client now; after an error of the engine that is nothing any more."""

    def finish(self) -> bytes:
        """Return what the engine left unfinished when it ended its reply in order."""

    def ending(self) -> Ending:
        """Return how the stream ended, judged by what was passed on."""

    def separator(self) -> bytes:
        """Return the newlines that end the last event passed on, so that another may follow."""


def is_only_done(data: bytes) -> bool:
    """Return whether `data`, the first of a stream, is its end already: an answer that is none."""
    return len(data) < 64 and _ONLY_DONE.match(data) is not None


class ModelName:
    """Turns the engine's name for a model back into the public one; does nothing when they are the same.

    The engine's name may carry `tag` in its answers (`smollm2:latest`). `served` is None for an engine that runs
    elsewhere and may answer under any name: `gpt-4o-2024-08-06` to `gpt-4o`.

    An unescaped `"model":"<name>"` can only be a member of an object: inside a JSON string its quotes are escaped.
    """

    def __init__(self, served: str | None, public: str, tag: str = "") -> None:
        self._pattern = None
        self._replacement = b'"model":' + _encode(public)
        if served is None:
            self._pattern = _ANY_NAME
            return
        names = [re.escape(_encode(name)) for name in {served, served + tag} if name != public]
        if names:
            self._pattern = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*(?:' + b"|".join(names) + b")")

    def restore(self, data: bytes) -> bytes:
        """Return `data`, which must not end inside such a member, with the public name."""
        if self._pattern is None or b'"model"' not in data:
            return data
        return self._pattern.sub(lambda _: self._replacement, data)


class EventStream:
    """The relay's view of one stream; `engine_error` is the JSON of an error event once one came.

    With `hides_usage` the event that tells the tokens and nothing else is not passed: the client did not ask for it.
    """

    def __init__(self, name: ModelName, *, hides_usage: bool = False) -> None:
        self.engine_error: bytes | None = None
        self.counts: Counts | None = None
        self.chunks = 0
        self._hides_usage = hides_usage
        self._has_hidden = False
        self._name = name
        self._held = b""
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may go to the client now; after an engine's error event that is nothing any more."""
        if self.engine_error is not None:
            return b""
        held = self._held + data if self._held else data
        cut = held.rfind(b"\n") + 1
        if cut == 0 and len(held) > MAX_LINE_BYTES:
            cut = len(held)
        whole, self._held = held[:cut], held[cut:]
        return self._passed(whole)

    def finish(self) -> bytes:
        """Return what the engine left unfinished when it ended its reply in order."""
        rest, self._held = self._held, b""
        return self._passed(rest) if self.engine_error is None else b""

    def ending(self) -> Ending:
        """Return how the stream ended, judged by what was passed on."""
        if _HAS_DONE.search(self._tail):
            return Ending.DONE
        return Ending.FINISHED if _HAS_FINISH.search(self._tail) else Ending.CUT

    def separator(self) -> bytes:
        """Return the newlines that end the last event passed on, so that another may follow."""
        if not self._tail or self._tail.endswith((b"\n\n", b"\r\n\r\n")):
            return b""
        return b"\n" if self._tail.endswith(b"\n") else b"\n\n"

    def _passed(self, data: bytes) -> bytes:
        found = _error_line(data) if b"error" in data else None
        if found is not None:
            self.engine_error = (found[1] or found[2]).strip()
            data = data[: found.start()]
        self.chunks += data.count(b'"choices"')
        if self._has_hidden or b'"usage"' in data:
            data = self._counted(data)
        data = self._name.restore(data)
        if data:
            self._tail = (self._tail + data)[-TAIL_BYTES:] if len(data) < TAIL_BYTES else data[-TAIL_BYTES:]
        return data

    def _counted(self, data: bytes) -> bytes:
        """Note the tokens that `data`, whole lines, tells of; return it without an event that is to be hidden."""
        passed, start = [], 0
        while start < len(data):
            end = data.find(b"\n", start) + 1 or len(data)
            line, start = data[start:end], end
            if self._has_hidden:
                self._has_hidden = False
                if line in (b"\n", b"\r\n"):
                    continue  # the empty line that ended the hidden event
            if b'"usage"' in line and line.startswith(b"data:"):
                told, is_all = of_event(line[len(b"data:") :])
                self.counts = told or self.counts
                if is_all and self._hides_usage:
                    self._has_hidden = True
                    self.chunks -= 1
                    continue
            passed.append(line)
        return b"".join(passed)


def _error_line(data: bytes) -> re.Match[bytes] | None:
    """Return the first line that is an engine's error: in group 1 or 2 lies its JSON."""
    for line in _MENTIONS_ERROR.finditer(data):
        if line[1] is None or _OPENS_WITH_ERROR.match(line[1]) or _has_error(line[1]):
            return line
    return None


def _has_error(event: bytes) -> bool:
    try:
        return bytes(_decode_event(event).error) != b"null"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
