"""Chat, generation and embedding as values: what both of Ollama's APIs are made of.

Comes in: a request of the native API as an object. Goes out: responses of the native API, one for each piece of an
answer, or `ApiError`. Called by `native` and, after translation, by `openai`.

Source: ollama/ollama server/routes.go, server/prompt.go and llm/llama_server.go of 0.33.
"""

import json
import math
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from tests.standins.llama import RunnerError
from tests.standins.ollama.errors import ApiError
from tests.standins.ollama.scheduler import Loaded, Scheduler
from tests.standins.ollama.store import Model, Store, parse_name

# api/types.go, DefaultOptions.
_DEFAULTS = {
    "num_predict": -1,
    "num_keep": 4,
    "seed": -1,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "temperature": 0.8,
    "repeat_penalty": 1.1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": [],
}
_LONGEST_IN_CONTEXTS = 10
_GONE = "an error was encountered while running the model: "


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Answering:
    """The models and what runs them."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self.store = store
        self.scheduler = scheduler

    def model(self, text: object) -> Model:
        """Return the model that a request names.

        Raises:
            ApiError: 404 when there is none.
        """
        name = parse_name(text) if isinstance(text, str) and text else None
        found = self.store.find(name) if name is not None else None
        if found is None:
            raise ApiError(404, f"model '{text or ''}' not found")
        return found

    def options(self, model: Model, request: Mapping) -> dict:
        return {**_DEFAULTS, **model.parameters, **(request.get("options") or {})}

    def chat(self, request: dict, client: socket.socket | None = None) -> Iterator[dict]:
        """Yield `ChatResponse`s, the last of them done."""
        started = time.monotonic_ns()
        _check_logprobs(request)
        model = self.model(request.get("model"))
        messages = request.get("messages") or []
        if not messages and request.get("keep_alive") in (0, "0", "0s"):
            self.scheduler.unload(model)
            yield self._empty_chat(request, "unload")
            return
        for capability in ("completion", *(["tools"] if request.get("tools") else [])):
            if capability not in model.capabilities:
                fault = f"{model.name.full} does not support {capability}"
                raise ApiError(
                    400, f'"{request["model"]}" does not support chat' if capability == "completion" else fault
                )
        options = self.options(model, request)
        with self.scheduler.use(model, options, request.get("keep_alive")) as entry:
            loaded_ns = time.monotonic_ns() - started
            if not messages:
                yield self._empty_chat(request, "load")
                return
            if model.system and messages[0].get("role") != "system":
                messages = [{"role": "system", "content": model.system}, *messages]
            kept = [_to_llama(message) for message in messages]
            if request.get("truncate") is not False:
                kept = _fitting(entry, kept, request.get("tools"))
            body = {**_sampling(options, entry), **_chat_extras(request), "messages": kept}
            body["cache_prompt"] = request.get("shift") is not False
            events = _guarded(entry.runner.events("/v1/chat/completions", body, client))
            for event in _chat_pieces(request["model"], events):
                if event["done"]:
                    event |= {"total_duration": time.monotonic_ns() - started, "load_duration": loaded_ns}
                yield event

    def generate(self, request: dict, client: socket.socket | None = None) -> Iterator[dict]:
        """Yield `GenerateResponse`s, the last of them done."""
        started = time.monotonic_ns()
        _check_logprobs(request)
        model = self.model(request.get("model"))
        prompt = request.get("prompt") or ""
        base = {"model": request["model"], "created_at": now(), "response": "", "done": True}
        if not prompt and request.get("keep_alive") in (0, "0", "0s"):
            self.scheduler.unload(model)
            yield {**base, "done_reason": "unload"}
            return
        if "completion" not in model.capabilities:
            raise ApiError(400, f'"{request["model"]}" does not support generate')
        if request.get("suffix"):
            raise ApiError(400, f"{model.name.full} does not support insert")
        options = self.options(model, request)
        with self.scheduler.use(model, options, request.get("keep_alive")) as entry:
            loaded_ns = time.monotonic_ns() - started
            if not prompt:
                yield {**base, "done_reason": "load"}
                return
            if not request.get("raw"):
                system = request.get("system") or model.system
                messages = [{"role": "system", "content": system}] if system else []
                prompt = _rendered(entry, [*messages, {"role": "user", "content": prompt}], None)
            body = {**_sampling(options, entry), "prompt": prompt, "cache_prompt": request.get("shift") is not False}
            body |= _format(request, "json_schema")
            if request.get("logprobs"):
                body["n_probs"] = max(int(request.get("top_logprobs") or 0), 1)
            events = _guarded(entry.runner.events("/completion", body, client))
            for piece in events:
                event = {"model": request["model"], "created_at": now(), "response": piece["content"], "done": False}
                if piece.get("completion_probabilities"):
                    event["logprobs"] = _logprobs(piece["completion_probabilities"], request)
                if piece["stop"]:
                    reason = "length" if piece.get("stop_type") == "limit" else "stop"
                    durations = {"total_duration": time.monotonic_ns() - started, "load_duration": loaded_ns}
                    event |= {"done": True, "done_reason": reason, **durations, **_counts(piece["timings"])}
                yield event

    def embed(self, request: dict, client: socket.socket | None = None) -> dict:
        """Return an `EmbedResponse`."""
        started = time.monotonic_ns()
        inputs = request.get("input")
        inputs = [inputs] if isinstance(inputs, str) and inputs else inputs or []
        if not isinstance(inputs, list) or not all(isinstance(one, str) for one in inputs):
            raise ApiError(400, "invalid input type")
        model = self.model(request.get("model"))
        with self.scheduler.use(model, self.options(model, request), request.get("keep_alive")) as entry:
            vectors, tokens = [], 0
            for text in inputs:
                vector, count = self._vector(entry, text, request, client)
                vectors.append(vector)
                tokens += count
        return {
            "model": request["model"],
            "embeddings": vectors,
            "total_duration": time.monotonic_ns() - started,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }

    def _vector(self, entry: Loaded, text: str, request: dict, client: socket.socket | None) -> tuple[list[float], int]:
        runner, limit = entry.runner, entry.runner.load.context - 2
        ids = runner.ask("/tokenize", {"content": text})["tokens"]
        if len(ids) > limit:
            if request.get("truncate") is False:
                raise ApiError(400, "the input length exceeds the context length")
            text = runner.ask("/detokenize", {"tokens": ids[:limit]})["content"]
        try:
            answer = runner.ask("/v1/embeddings", {"input": text}, client)
        except RunnerError as error:
            raise ApiError(error.status or 500, _llama_message(error.text)) from error
        vector = answer["data"][0]["embedding"]
        dimensions = int(request.get("dimensions") or 0)
        return _normal(vector[: dimensions or None]), answer["usage"]["prompt_tokens"]

    def _empty_chat(self, request: dict, reason: str) -> dict:
        message = {"role": "assistant", "content": ""}
        return {"model": request["model"], "created_at": now(), "message": message, "done": True, "done_reason": reason}


def _check_logprobs(request: Mapping) -> None:
    if not 0 <= int(request.get("top_logprobs") or 0) <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")


def _guarded(events: Iterator[dict]) -> Iterator[dict]:
    """Turn llama.cpp's failures into Ollama's: its status and raw text before anything came, else a broken run."""
    try:
        is_whole = False
        for event in events:
            choices = event.get("choices") or [{}]
            is_whole = bool(event.get("stop") or choices[0].get("finish_reason"))
            yield event
        if not is_whole:
            raise RunnerError(0, "unexpected EOF")
    except RunnerError as error:
        raise ApiError(error.status or 500, error.text.strip() if error.status else _GONE + error.text) from error


def _llama_message(text: str) -> str:
    _, _, rest = text.partition('"message":"')
    return rest.split('","')[0] or text


def _rendered(entry: Loaded, messages: list[dict], tools: object) -> str:
    body = {"messages": messages, **({"tools": tools} if tools else {})}
    try:
        return entry.runner.ask("/apply-template", body)["prompt"]
    except RunnerError as error:
        raise ApiError(error.status or 500, error.text) from error


def _fitting(entry: Loaded, messages: list[dict], tools: object) -> list[dict]:
    """Drop the oldest messages without a word until the prompt fits; system messages and the last one always stay."""
    for first in range(len(messages)):
        kept = [*(one for one in messages[:first] if one["role"] == "system"), *messages[first:]]
        ids = entry.runner.ask("/tokenize", {"content": _rendered(entry, kept, tools)})["tokens"]
        if len(ids) <= entry.runner.load.context:
            break
    return kept


def _sampling(options: Mapping, entry: Loaded) -> dict:
    limit = _LONGEST_IN_CONTEXTS * entry.runner.load.context
    wanted = int(options["num_predict"])
    names = ("temperature", "top_k", "top_p", "min_p", "stop", "repeat_penalty", "repeat_last_n", "typical_p", "seed")
    penalties = ("frequency_penalty", "presence_penalty")
    stop = [options["stop"]] if isinstance(options["stop"], str) else options["stop"]
    body = {name: options[name] for name in (*names, *penalties)}
    return {**body, "stop": stop, "stream": True, "n_predict": limit if not 0 <= wanted <= limit else wanted}


def _format(request: Mapping, schema_field: str) -> dict:
    wanted = request.get("format")
    if not wanted:
        return {}
    if wanted == "json":
        return {schema_field: {"type": "object"}}
    if isinstance(wanted, dict):
        return {schema_field: wanted}
    raise ApiError(500, f'invalid format: "{wanted}"; expected "json" or a valid JSON Schema object')


def _chat_extras(request: Mapping) -> dict:
    extras: dict[str, object] = {}
    if schema := _format(request, "schema"):
        extras["response_format"] = {"type": "json_schema", "json_schema": {"name": "schema", **schema}}
    if request.get("tools"):
        extras["tools"] = request["tools"]
    if request.get("logprobs"):
        extras |= {"logprobs": True, "top_logprobs": max(int(request.get("top_logprobs") or 0), 1)}
    return extras


def _to_llama(message: Mapping) -> dict:
    one = {"role": message.get("role", ""), "content": message.get("content") or ""}
    if message.get("images"):
        raise ApiError(500, "this model does not support images")
    if message.get("tool_name"):
        one["name"] = message["tool_name"]
    if message.get("tool_call_id"):
        one["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        one["tool_calls"] = [
            {
                "id": call.get("id", ""),
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"].get("arguments") or {}),
                },
            }
            for call in message["tool_calls"]
        ]
    return one


def _chat_pieces(name: str, events: Iterator[dict]) -> Iterator[dict]:
    calls: dict[int, dict] = {}
    for event in events:
        if not event["choices"]:
            continue
        choice = event["choices"][0]
        delta = choice["delta"]
        for call in delta.get("tool_calls") or []:
            held = calls.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
            held["id"] += call.get("id") or ""
            held["name"] += call["function"].get("name") or ""
            held["arguments"] += call["function"].get("arguments") or ""
        message = {"role": "assistant", "content": delta.get("content") or ""}
        if delta.get("reasoning_content"):
            message["thinking"] = delta["reasoning_content"]
        piece = {"model": name, "created_at": now(), "message": message, "done": False}
        if (choice.get("logprobs") or {}).get("content"):
            piece["logprobs"] = _logprobs(choice["logprobs"]["content"], {"top_logprobs": 1})
        if choice.get("finish_reason"):
            if calls:
                message["tool_calls"] = [_call(index, call) for index, call in sorted(calls.items())]
            reason = "length" if choice["finish_reason"] == "length" else "stop"
            yield {**piece, "done": True, "done_reason": reason, **_counts(event["timings"])}
            return
        if message["content"] or message.get("thinking"):
            yield piece


def _call(index: int, call: Mapping) -> dict:

    arguments = json.loads(call["arguments"] or "{}")
    return {"id": call["id"], "function": {"index": index, "name": call["name"], "arguments": arguments}}


def _logprobs(found: list[dict], request: Mapping) -> list[dict]:
    def one(token: Mapping) -> dict:
        return {"token": token["token"], "logprob": token.get("logprob", 0.0), "bytes": list(token["token"].encode())}

    is_top = int(request.get("top_logprobs") or 0) > 0
    return [
        {**one(token), **({"top_logprobs": [one(top) for top in token.get("top_logprobs", [])]} if is_top else {})}
        for token in found
    ]


def _counts(timings: Mapping) -> dict:
    return {
        "prompt_eval_count": timings["prompt_n"] + timings.get("cache_n", 0),
        "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
        "eval_count": timings["predicted_n"],
        "eval_duration": int(timings["predicted_ms"] * 1e6),
    }


def _normal(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector)) or 1e-12
    return [value / length for value in vector]
