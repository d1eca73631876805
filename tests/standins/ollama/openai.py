"""Ollama's partial imitation of OpenAI's API: /v1/*, with what it leaves out.

It ignores `max_completion_tokens`, `n`, `tool_choice`, `logit_bias`, `parallel_tool_calls` and `user`; forces
temperature and top_p to 1 when they are not given; cuts prompts that do not fit; and loses an error in the middle of a
stream: its writer reads the error as an empty answer, and neither a finish reason nor `[DONE]` follows.

Source: ollama/ollama openai/openai.go and middleware/openai.go of 0.33.
"""

import base64
import json
import random
import struct
import time

from tests.standins.ollama.answering import Answering
from tests.standins.ollama.errors import ApiError
from tests.standins.ollama.native import whole_chat, whole_generate
from tests.standins.serving import Handler

_FINGERPRINT = "fp_ollama"


def error_object(error: ApiError) -> dict:
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    kind = kinds.get(error.status, "api_error")
    return {"error": {"message": error.text, "type": kind, "param": None, "code": None}}


class OpenAi:
    """The routes of /v1."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def models(self, handler: Handler) -> None:
        data = [
            {
                "id": model.name.shortest,
                "object": "model",
                "created": int(model.modified_at.timestamp()),
                "owned_by": model.name.namespace,
            }
            for model in self._answering.store.models()
        ]
        handler.json(200, {"object": "list", "data": data})

    def chat(self, handler: Handler) -> None:
        request = _asked(handler)
        if not request.get("messages"):
            raise ApiError(400, "[] is too short - 'messages'")
        native = {
            "model": request.get("model", ""),
            "messages": [message for one in request["messages"] for message in _messages(one)],
            "options": _options(request),
            "tools": request.get("tools"),
            "format": _format(request.get("response_format")),
            "logprobs": bool(request.get("logprobs")),
            "top_logprobs": request.get("top_logprobs") or 0,
        }
        pieces = self._answering.chat(native, handler.client)
        name = f"chatcmpl-{random.randrange(999)}"  # upstream's own choice of ids
        if request.get("stream"):
            self._stream(handler, pieces, request, lambda piece: _chat_chunk(name, piece))
            return
        whole = whole_chat(list(pieces))
        message = {"role": "assistant", "content": whole["message"]["content"]}
        choice = {"index": 0, "message": message, "finish_reason": whole["done_reason"]}
        if whole["message"].get("tool_calls"):
            message["tool_calls"] = _tool_calls(whole["message"]["tool_calls"])
            choice["finish_reason"] = "tool_calls"
        if whole.get("logprobs"):
            choice["logprobs"] = {"content": whole["logprobs"]}
        handler.json(200, {**_head(name, "chat.completion", whole), "choices": [choice], "usage": _usage(whole)})

    def completions(self, handler: Handler) -> None:
        request = _asked(handler)
        if not isinstance(request.get("prompt"), str):
            raise ApiError(
                400, "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string"
            )
        native = {
            "model": request.get("model", ""),
            "prompt": request["prompt"],
            "suffix": request.get("suffix") or "",
            "options": _options(request),
        }
        pieces = self._answering.generate(native, handler.client)
        name = f"cmpl-{random.randrange(999)}"
        if request.get("stream"):
            self._stream(handler, pieces, request, lambda piece: _text_chunk(name, piece))
            return
        whole = whole_generate(list(pieces))
        choice = {"text": whole["response"], "index": 0, "finish_reason": whole["done_reason"]}
        handler.json(200, {**_head(name, "text_completion", whole), "choices": [choice], "usage": _usage(whole)})

    def embeddings(self, handler: Handler) -> None:
        request = _asked(handler)
        if not request.get("input"):
            raise ApiError(400, "invalid input")
        answer = self._answering.embed({k: request[k] for k in ("model", "input", "dimensions") if k in request})
        is_base64 = str(request.get("encoding_format", "")).lower() == "base64"
        data = [
            {"object": "embedding", "embedding": _base64(vector) if is_base64 else vector, "index": index}
            for index, vector in enumerate(answer["embeddings"])
        ]
        usage = {"prompt_tokens": answer["prompt_eval_count"], "total_tokens": answer["prompt_eval_count"]}
        handler.json(200, {"object": "list", "data": data, "model": request["model"], "usage": usage})

    def _stream(self, handler: Handler, pieces: object, request: dict, chunk: object) -> None:
        wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        try:
            for piece in pieces:  # type: ignore[attr-defined]
                if not handler.is_started:
                    handler.begin("text/event-stream")
                made = chunk(piece)  # type: ignore[operator]
                handler.piece(_event(made))
                if piece["done"]:
                    if wants_usage:
                        handler.piece(_event({**made, "choices": [], "usage": _usage(piece)}))
                    handler.piece(b"data: [DONE]\n\n")
        except ApiError:
            if not handler.is_started:
                raise
            empty = {"model": "", "message": {"content": ""}, "response": "", "done": False}
            handler.piece(_event(chunk(empty)))  # type: ignore[operator]
        handler.end()


def _asked(handler: Handler) -> dict:
    try:
        value = json.loads(handler.body or b"")
    except ValueError as error:
        raise ApiError(400, f"invalid character: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "json: cannot unmarshal value into Go value of type openai request")
    return value


def _event(value: dict) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _head(name: str, kind: str, piece: dict) -> dict:
    return {
        "id": name,
        "object": kind,
        "created": int(time.time()),
        "model": piece["model"],
        "system_fingerprint": _FINGERPRINT,
    }


def _chat_chunk(name: str, piece: dict) -> dict:
    delta = {"role": "assistant", "content": piece["message"]["content"]}
    reason = piece.get("done_reason")
    if piece["message"].get("tool_calls"):
        delta["tool_calls"] = _tool_calls(piece["message"]["tool_calls"])
        reason = "tool_calls"
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    if piece.get("logprobs"):
        choice["logprobs"] = {"content": piece["logprobs"]}
    return {**_head(name, "chat.completion.chunk", piece), "choices": [choice]}


def _text_chunk(name: str, piece: dict) -> dict:
    choice = {"text": piece["response"], "index": 0, "finish_reason": piece.get("done_reason")}
    return {**_head(name, "text_completion", piece), "choices": [choice]}


def _usage(piece: dict) -> dict:
    prompt, answer = piece["prompt_eval_count"], piece["eval_count"]
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _tool_calls(calls: list[dict]) -> list[dict]:
    return [
        {
            "id": call["id"],
            "index": call["function"]["index"],
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])},
        }
        for call in calls
    ]


def _options(request: dict) -> dict:
    options = {"temperature": 1.0, "top_p": 1.0}
    names = {"max_tokens": "num_predict", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
    names |= {"frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty"}
    options |= {ours: request[theirs] for theirs, ours in names.items() if request.get(theirs) is not None}
    if request.get("stop"):
        options["stop"] = [request["stop"]] if isinstance(request["stop"], str) else request["stop"]
    return options


def _format(wanted: dict | None) -> object:
    kind = (wanted or {}).get("type")
    if kind == "json_object":
        return "json"
    return (wanted or {}).get("json_schema", {}).get("schema") if kind == "json_schema" else None


def _messages(message: dict) -> list[dict]:
    content = message.get("content")
    base = {"role": message.get("role", "")}
    if isinstance(content, list):
        found = []
        for part in content:
            if part.get("type") != "text":
                raise ApiError(400, "image URLs are not currently supported, please use base64 encoded data instead")
            found.append({**base, "content": part["text"]})
        return found
    if content is not None and not isinstance(content, str):
        raise ApiError(400, "invalid message content type")
    if content is None and not message.get("tool_calls"):
        raise ApiError(400, "invalid message content type: <nil>")
    one = {**base, "content": content or ""}
    if message.get("tool_call_id"):
        one["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        one["tool_calls"] = [
            {"id": c.get("id", ""), "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
            for c in message["tool_calls"]
        ]
    return [one]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
