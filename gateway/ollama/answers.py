"""Ollama's answers in OpenAI's words. Comes in: one decoded object of /api/chat, /api/generate or /api/embed. Goes out:
the objects of OpenAI's API. Called by `exchange`. Pure.

Source: https://github.com/openai/openai-openapi (the shapes), ollama/ollama docs/openapi.yaml of 0.33.
"""

import base64
import struct
from datetime import datetime
from typing import Any

import msgspec

from adapters.contract import Endpoint

_REASONS = frozenset({"stop", "length"})


class Function(msgspec.Struct):
    """What a tool call calls."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct):
    """One whole tool call: Ollama sends them in one piece."""

    function: Function
    id: str = ""


class Message(msgspec.Struct):
    """A message, or a piece of one."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = []


class Piece(msgspec.Struct):
    """One line of a stream, or a whole answer; `error` is set when it failed."""

    error: str | None = None
    created_at: str = ""
    message: Message | None = None
    response: str = ""
    thinking: str = ""
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    logprobs: list[dict[str, Any]] | None = None


class Embedded(msgspec.Struct):
    """An answer of /api/embed."""

    embeddings: list[list[float]]
    prompt_eval_count: int = 0


class Writer:
    """Writes the answer to one request; `name` is the model's public name, `ident` unique among answers."""

    def __init__(self, endpoint: Endpoint, name: str, ident: str) -> None:
        self._is_chat = endpoint is Endpoint.CHAT
        self._name = name
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{ident}"
        self._created = 0
        self._is_begun = False
        self._calls = 0
        self._offset = 0

    def whole(self, piece: Piece) -> dict[str, Any]:
        """Return a whole answer."""
        reason = self._reason(piece)
        if self._is_chat:
            said = piece.message or Message()
            message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
            if said.thinking:
                message["reasoning_content"] = said.thinking
            if said.tool_calls:
                message["tool_calls"] = self._tool_calls(said.tool_calls, is_delta=False)
                message["content"] = said.content or None
            choice = {"index": 0, "message": message, "logprobs": self._logprobs(piece), "finish_reason": reason}
        else:
            choice = {
                "index": 0,
                "text": piece.response,
                "logprobs": self._logprobs(piece),
                "finish_reason": reason,
            }
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._head(kind, piece), "choices": [choice], "usage": usage(piece)}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return one chunk of a stream."""
        reason = self._reason(piece) if piece.done else None
        if not self._is_chat:
            choice = {
                "index": 0,
                "text": piece.response,
                "logprobs": self._logprobs(piece),
                "finish_reason": reason,
            }
            return {**self._head("text_completion", piece), "choices": [choice]}
        said = piece.message or Message()
        delta: dict[str, Any] = {} if self._is_begun else {"role": "assistant", "content": said.content}
        self._is_begun = True
        if said.content:
            delta["content"] = said.content
        if said.thinking:
            delta["reasoning_content"] = said.thinking
        if said.tool_calls:
            delta["tool_calls"] = self._tool_calls(said.tool_calls, is_delta=True)
            reason = "tool_calls" if piece.done else None
        choice = {"index": 0, "delta": delta, "logprobs": self._logprobs(piece), "finish_reason": reason}
        return {**self._head("chat.completion.chunk", piece), "choices": [choice]}

    def last(self, piece: Piece) -> dict[str, Any]:
        """Return the chunk that carries a stream's usage."""
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head(kind, piece), "choices": [], "usage": usage(piece)}

    def _head(self, kind: str, piece: Piece) -> dict[str, Any]:
        self._created = self._created or _unix(piece.created_at)
        return {"id": self._id, "object": kind, "created": self._created, "model": self._name}

    def _reason(self, piece: Piece) -> str:
        if self._calls or (piece.message is not None and piece.message.tool_calls):
            return "tool_calls"
        return piece.done_reason if piece.done_reason in _REASONS else "stop"

    def _tool_calls(self, calls: list[ToolCall], *, is_delta: bool) -> list[dict[str, Any]]:
        found = []
        for call in calls:
            arguments = msgspec.json.encode(call.function.arguments).decode()
            function = {"name": call.function.name, "arguments": arguments}
            index = {"index": self._calls} if is_delta else {}
            ident = call.id or f"call_{self._id.partition('-')[2]}_{self._calls}"
            found.append({**index, "id": ident, "type": "function", "function": function})
            self._calls += 1
        return found

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not piece.logprobs:
            return None
        if self._is_chat:
            return {"content": [_token(one) for one in piece.logprobs], "refusal": None}
        offsets = []
        for one in piece.logprobs:
            offsets.append(self._offset)
            self._offset += len(one["token"])
        return {
            "tokens": [one["token"] for one in piece.logprobs],
            "token_logprobs": [one["logprob"] for one in piece.logprobs],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in one.get("top_logprobs") or []} for one in piece.logprobs
            ],
            "text_offset": offsets,
        }


def usage(piece: Piece) -> dict[str, int]:
    """Return OpenAI's usage object of a piece that is done."""
    prompt, answer = piece.prompt_eval_count, piece.eval_count
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def embedding_list(found: Embedded, name: str, *, is_base64: bool) -> dict[str, Any]:
    """Return OpenAI's list of embeddings; in base64 they are little-endian float32."""
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if is_base64 else vector}
        for index, vector in enumerate(found.embeddings)
    ]
    tokens = found.prompt_eval_count
    return {
        "object": "list",
        "data": data,
        "model": name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _token(one: dict[str, Any]) -> dict[str, Any]:
    def known(token: dict[str, Any]) -> dict[str, Any]:
        text = token["token"]
        return {"token": text, "logprob": token["logprob"], "bytes": token.get("bytes") or list(text.encode())}

    return {**known(one), "top_logprobs": [known(top) for top in one.get("top_logprobs") or []]}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _unix(instant: str) -> int:
    try:
        return int(datetime.fromisoformat(instant).timestamp())
    except ValueError:
        return 0
