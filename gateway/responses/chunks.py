"""The parts of a chat's answer that a response has a word for, as values. Called by `answers`. Pure.

Source: https://github.com/openai/openai-openapi; `reasoning` and `reasoning_content` are what engines call a model's
thoughts.
"""

from typing import Any

import msgspec


class Function(msgspec.Struct):
    """What is called; name and arguments come in pieces."""

    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct):
    """One tool call, or a piece of it."""

    index: int | None = None
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

    def told(self) -> dict[str, Any]:
        """Return it as a response tells it: with bytes always."""
        rivals = [one.told() for one in self.top_logprobs or ()]
        for one in rivals:
            del one["top_logprobs"]
        raw = list(self.token.encode()) if self.bytes is None else self.bytes
        return {"token": self.token, "logprob": self.logprob, "bytes": raw, "top_logprobs": rivals}


class Logprobs(msgspec.Struct):
    """Log probabilities of a choice."""

    content: list[Token] | None = None


class Choice(msgspec.Struct):
    """One answer, or a piece of it."""

    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Thought(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Thought | None = None

    def told(self) -> dict[str, Any]:
        """Return it in a response's words."""
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        thought = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": thought or 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Error(msgspec.Struct):
    """What the relay ends a broken stream with."""

    message: str = ""


class Event(msgspec.Struct):
    """A chunk, a whole answer or an error."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Error | None = None


decode = msgspec.json.Decoder(Event).decode
WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `decode` raises for what is none."""
