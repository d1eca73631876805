"""The parts of OpenAI's answers that Ollama has a word for, as values. Called by `answers`. Pure.

Source: https://github.com/openai/openai-openapi; `timings` is llama.cpp's, `reasoning` and `reasoning_content` are what
engines call a model's thoughts.
"""

from typing import Any

import msgspec


class Function(msgspec.Struct):
    """What is called; name and arguments come in pieces."""

    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct):
    """One tool call, or a piece of it."""

    index: int = 0
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A message, or a piece of one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallPiece] | None = None


class Token(msgspec.Struct):
    """One token and its log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["Token"] | None = None


class Logprobs(msgspec.Struct):
    """Log probabilities, as chats tell them (`content`) or as completions do."""

    content: list[Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct):
    """One choice; only the first is ever asked for."""

    delta: Said | None = None
    message: Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(msgspec.Struct):
    """Tokens read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Timings(msgspec.Struct):
    """What the engine measured, milliseconds."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class Error(msgspec.Struct):
    """What the relay ends a broken stream with."""

    message: str = ""


class Event(msgspec.Struct):
    """A chunk, a whole answer or an error."""

    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: Error | None = None


class Vector(msgspec.Struct):
    """One embedding."""

    embedding: msgspec.Raw
    index: int = 0


class Vectors(msgspec.Struct):
    """A list of embeddings."""

    data: list[Vector]
    usage: Usage | None = None


decode = msgspec.json.Decoder(Event).decode
decode_vectors = msgspec.json.Decoder(Vectors).decode
_decode_arguments = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Call:
    """One tool call, collected."""

    def __init__(self) -> None:
        self._id = ""
        self._name = ""
        self._arguments: list[str] = []

    def add(self, piece: CallPiece) -> "Call":
        """Take in a piece and return the call."""
        self._id = piece.id or self._id
        if piece.function is not None:
            self._name += piece.function.name or ""
            self._arguments.append(piece.function.arguments or "")
        return self

    def whole(self, index: int) -> dict[str, Any] | None:
        """Return the call as Ollama tells it, None when its arguments are no JSON object."""
        try:
            arguments = _decode_arguments("".join(self._arguments) or "{}")
        except (msgspec.DecodeError, RecursionError):
            return None
        ident = {"id": self._id} if self._id else {}
        return {**ident, "function": {"index": index, "name": self._name, "arguments": arguments}}


def logprobs(given: Logprobs) -> list[dict[str, Any]]:
    """Return the log probabilities of a choice, in either of OpenAI's forms, as Ollama tells them."""
    if given.content is not None:
        return [
            {**_token(one), "top_logprobs": [_token(top) for top in one.top_logprobs or ()]} for one in given.content
        ]
    tokens = given.tokens or []
    tops = given.top_logprobs or [None] * len(tokens)
    return [
        {
            "token": token,
            "logprob": value or 0.0,  # the first token of a prompt has none
            "top_logprobs": [{"token": name, "logprob": one} for name, one in (top or {}).items()],
        }
        for token, value, top in zip(tokens, given.token_logprobs or [], tops, strict=False)
    ]


def _token(one: Token) -> dict[str, Any]:
    told = {"token": one.token, "logprob": one.logprob}
    return told if one.bytes is None else {**told, "bytes": one.bytes}
