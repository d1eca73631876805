"""One request to an engine that speaks Ollama's API: its body, and its answer or stream turned back.

Comes in: a checked call. Goes out: bytes for the engine and bytes for the client. Implements `gateway.words.Words`;
called by the relay. Sans-I/O. An error inside a stream is caught, never passed; a stream ends with `[DONE]` exactly
when Ollama said that it is done.
"""

from typing import Any

import msgspec

from adapters.contract import Endpoint
from core.infra.entropy import SystemEntropy
from gateway.ollama import answers, requests
from gateway.openai import stream
from gateway.upstream import EngineDied
from gateway.usage.counts import Counts, bounded

_decode_piece = msgspec.json.Decoder(answers.Piece).decode
_decode_embedded = msgspec.json.Decoder(answers.Embedded).decode
_encode = msgspec.json.Encoder().encode


class Exchange:
    """The words of one exchange."""

    stream_type = b"application/x-ndjson"

    def __init__(self, endpoint: Endpoint, body: bytes, served: str, public: str) -> None:
        """Translate `body`.

        Raises:
            Failure: `request.invalid_field`.
        """
        self._endpoint = endpoint
        self._public = public
        self._asked = requests.asked(endpoint, body, served)
        self.body = self._asked.body

    def events(self, name: stream.ModelName) -> stream.Events:
        """Return a fresh view of the answer's stream; the public name is written, not put back."""
        return _Lines(self._writer(), wants_usage=self._asked.wants_usage)

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        """Return a whole answer.

        Raises:
            EngineDied: it is none of Ollama's.
        """
        try:
            if self._endpoint is Endpoint.EMBEDDINGS:
                found = _decode_embedded(body)
                return _encode(answers.embedding_list(found, self._public, is_base64=self._asked.is_base64))
            piece = _decode_piece(body)
            if piece.error is not None or not piece.done:
                raise EngineDied("an answer that is an error, or is not whole")
            return _encode(self._writer().whole(piece))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise EngineDied("an answer that is none") from error

    def _writer(self) -> answers.Writer:
        return answers.Writer(self._endpoint, self._public, SystemEntropy().token_bytes(12).hex())


class _Lines:
    """A stream of JSON lines on its way to server-sent events; implements `stream.Events`."""

    def __init__(self, writer: answers.Writer, *, wants_usage: bool) -> None:
        self.engine_error: bytes | None = None
        self.counts: Counts | None = None
        self.chunks = 0
        self._writer = writer
        self._wants_usage = wants_usage
        self._held = b""
        self._is_done = False

    def feed(self, data: bytes) -> bytes:
        """Return the events of every whole line in what came."""
        held = self._held + data if self._held else data
        *lines, self._held = held.split(b"\n")
        if len(self._held) > stream.MAX_LINE_BYTES:
            raise EngineDied("an endless line")
        return b"".join([self._events(line) for line in lines])

    def finish(self) -> bytes:
        """Return the events of a last line without an end."""
        rest, self._held = self._held, b""
        return self._events(rest)

    def ending(self) -> stream.Ending:
        """Return done exactly when Ollama's last line said so."""
        return stream.Ending.DONE if self._is_done else stream.Ending.CUT

    def separator(self) -> bytes:
        """Return nothing: only whole events are ever passed."""
        return b""

    def _events(self, line: bytes) -> bytes:
        if self._is_done or self.engine_error is not None or not line.strip():
            return b""
        try:
            piece = _decode_piece(line)
            if piece.error is not None:
                self.engine_error = line
                return b""
            events = [_event(self._writer.chunk(piece))]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise EngineDied("a line that is none") from error
        self.chunks += 1
        if piece.done:
            self._is_done = True
            self.counts = bounded(piece.prompt_eval_count, piece.eval_count)
            if self._wants_usage:
                events.append(_event(self._writer.last(piece)))
            events.append(stream.DONE)
        return b"".join(events)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"
