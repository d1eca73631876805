"""OpenAI's answers in Ollama's words. Comes in: what the relay writes, a stream cut anywhere or a whole answer. Goes
out: lines of JSON, or one object. Called by `passage`. Sans-I/O: time comes from the clock it is given.

One decode and one encode a chunk: the members that never change are bytes made once. A stream ends with one object that
is `done`, or with one that has an `error`; it must not end without either, nor tell a tool call in pieces.

Source: ollama/ollama docs/openapi.yaml and docs/api.md of 0.33.
"""

from typing import Any

import msgspec

from core.clock import Clock
from core.errors import Failure
from gateway.ollama_api import chunks
from gateway.openai.stream import MAX_LINE_BYTES

_PREFIX, _DONE = b"data:", b"[DONE]"
_REASONS = {"tool_calls": "stop", "function_call": "stop"}
_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_encode = msgspec.json.Encoder().encode


def instant(clock: Clock) -> str:
    """Return now as RFC 3339 with a Z, as Ollama writes it."""
    return clock.now().isoformat().replace("+00:00", "Z")


class Text:
    """The answer to one chat (`is_chat`) or generation, `model` as the client called it.

    `failure` is set once the stream has ended with an error that came from here: a chunk or a tool call that is none.
    """

    def __init__(self, model: str, *, is_chat: bool, clock: Clock, started_s: float) -> None:
        self.failure: Failure | None = None
        self._model = model
        self._is_chat = is_chat
        self._clock = clock
        self._started_s = started_s
        self._first_s: float | None = None
        self._head = b'{"model":' + _encode(model) + b',"created_at":"'
        self._open = b'","message":{"role":"assistant","content":' if is_chat else b'","response":'
        self._shut = b"}" if is_chat else b""
        self._held = b""
        self._calls: dict[int, chunks.Call] = {}
        self._reason: str | None = None
        self._usage: chunks.Usage | None = None
        self._timings: chunks.Timings | None = None
        self._is_ended = False

    def feed(self, data: bytes) -> bytes:
        """Return the lines of every whole event in what came."""
        *lines, self._held = (self._held + data if self._held else data).split(b"\n")
        if len(self._held) > MAX_LINE_BYTES:
            return self._broken()
        return b"".join([self._event(line) for line in lines if line.startswith(_PREFIX)])

    def finish(self) -> bytes:
        """Return what is still to be told when the relay has ended its stream."""
        rest, self._held = self._held, b""
        last = self._event(rest) if rest.startswith(_PREFIX) else b""
        return last + self._ended()

    def whole(self, body: bytes) -> bytes:
        """Return a whole answer as one object.

        Raises:
            Failure: `door.engine_failed`: it is none.
        """
        try:
            event = chunks.decode(body)
            choice = event.choices[0]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
            raise _nonsense(self._model) from None
        said = choice.message or chunks.Said(content=choice.text)
        self._usage, self._timings = event.usage, event.timings
        self._reason = choice.finish_reason
        self._calls = {index: chunks.Call().add(one) for index, one in enumerate(said.tool_calls or [])}
        told: dict[str, Any] = {}
        if choice.logprobs is not None:
            told["logprobs"] = chunks.logprobs(choice.logprobs)
        return _encode(self._last(said, self._whole_calls(), told))

    def line(self, body: bytes) -> bytes:
        """Return a whole answer as the one line of a stream.

        Raises:
            Failure: `door.engine_failed`: it is none.
        """
        return self.whole(body) + b"\n"

    def _event(self, line: bytes) -> bytes:
        data = line[len(_PREFIX) :].strip()
        if self._is_ended or not data:
            return b""
        if data == _DONE:
            return self._ended()
        try:
            event = chunks.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._broken()
        if event.error is not None:
            self._is_ended = True
            return _encode({"error": event.error.message}) + b"\n"
        if event.usage is not None:
            self._usage = event.usage
        if event.timings is not None:
            self._timings = event.timings
        return self._choice(event.choices[0]) if event.choices else b""

    def _choice(self, choice: chunks.Choice) -> bytes:
        if choice.finish_reason:
            self._reason = choice.finish_reason
        said = choice.delta
        if said is None:
            content, thought = choice.text or "", ""
        else:
            content, thought = said.content or "", said.reasoning_content or said.reasoning or ""
            for piece in said.tool_calls or ():
                self._calls.setdefault(piece.index, chunks.Call()).add(piece)
        if not content and not thought and not choice.logprobs:
            return b""
        if self._first_s is None:
            self._first_s = self._clock.monotonic()
        more = b',"thinking":' + _encode(thought) if thought else b""
        after = b',"logprobs":' + _encode(chunks.logprobs(choice.logprobs)) if choice.logprobs else b""
        pieces = (self._head, instant(self._clock).encode(), self._open, _encode(content), more, self._shut, after)
        return b"".join(pieces) + b',"done":false}\n'

    def _ended(self) -> bytes:
        """Return the last line, with the tool calls in one of their own before it; nothing when it was told."""
        if self._is_ended:
            return b""
        try:
            calls = self._whole_calls()
        except Failure as failure:
            return self._broken(failure)
        self._is_ended = True
        before = b""
        if calls:
            message = {"role": "assistant", "content": "", "tool_calls": calls}
            before = _encode({**self._common(), "message": message, "done": False}) + b"\n"
        return before + _encode(self._last(chunks.Said(), [], {})) + b"\n"

    def _last(self, said: chunks.Said, calls: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        thought = said.reasoning_content or said.reasoning
        extra: dict[str, Any] = {"thinking": thought} if thought else {}
        if self._is_chat:
            message = {"role": "assistant", "content": said.content or "", **extra}
            told: dict[str, Any] = {"message": {**message, "tool_calls": calls} if calls else message}
        else:
            told = {"response": said.content or "", **extra}
        reason = self._reason or "stop"
        end = {"done": True, "done_reason": _REASONS.get(reason, reason)}
        return {**self._common(), **told, **more, **end, **self._counts()}

    def _common(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": instant(self._clock)}

    def _counts(self) -> dict[str, int]:
        """Return counts as the engine tells them, and durations in nanoseconds: its own, or else what the door saw."""
        now_s = self._clock.monotonic()
        first_s = self._started_s if self._first_s is None else self._first_s
        prompt_ns, answer_ns = _ns(first_s - self._started_s), _ns(now_s - first_s)
        if self._timings is not None:
            prompt_ns = int(self._timings.prompt_ms * _NS_PER_MS)
            answer_ns = int(self._timings.predicted_ms * _NS_PER_MS)
        found = {"total_duration": _ns(now_s - self._started_s), "load_duration": 0, "prompt_eval_duration": prompt_ns}
        if self._usage is not None:
            found |= {"prompt_eval_count": self._usage.prompt_tokens, "eval_count": self._usage.completion_tokens}
        return {**found, "eval_duration": answer_ns}

    def _whole_calls(self) -> list[dict[str, Any]]:
        """Return the collected calls; those that the answer's length cut off are left out, as `done_reason` tells.

        Raises:
            Failure: `door.engine_failed`: the arguments of one are no JSON object.
        """
        found = [self._calls[index].whole(place) for place, index in enumerate(sorted(self._calls))]
        if None in found and self._reason != "length":
            text = f"Model '{self._model}' called a tool with arguments that are no JSON object"
            raise Failure("door.engine_failed", text, hint="try again")
        return [call for call in found if call is not None]

    def _broken(self, failure: Failure | None = None) -> bytes:
        self._is_ended = True
        self._held = b""
        self.failure = failure or _nonsense(self._model)
        return _encode({"error": str(self.failure)}) + b"\n"


class Vectors:
    """The answer to one request for embeddings; `is_old` for /api/embeddings, which has nothing but one."""

    def __init__(self, model: str, *, is_old: bool, clock: Clock, started_s: float) -> None:
        self._model = model
        self._is_old = is_old
        self._clock = clock
        self._started_s = started_s

    def whole(self, body: bytes) -> bytes:
        """Return the answer; the numbers stay the engine's bytes.

        Raises:
            Failure: `door.engine_failed`: it is none.
        """
        try:
            found = chunks.decode_vectors(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _nonsense(self._model) from None
        vectors = [one.embedding for one in sorted(found.data, key=lambda one: one.index)]
        if not vectors or not all(bytes(one).startswith(b"[") for one in vectors):
            raise _nonsense(self._model)
        if self._is_old:
            return _encode({"embedding": vectors[0]})
        lasted = _ns(self._clock.monotonic() - self._started_s)
        told: dict[str, Any] = {"model": self._model, "embeddings": vectors, "total_duration": lasted}
        count = {} if found.usage is None else {"prompt_eval_count": found.usage.prompt_tokens}
        return _encode({**told, "load_duration": 0, **count})


def _ns(seconds: float) -> int:
    return max(0, int(seconds * _NS_PER_S))


def _nonsense(model: str) -> Failure:
    return Failure("door.engine_failed", f"The engine of model '{model}' sent an answer that is none", hint="try again")
