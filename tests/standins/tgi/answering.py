"""Validation and generation as TGI's router does them, on a llama.cpp child.

Comes in: a request of /generate. Goes out: tokens one by one, or `ApiError`. Called by `routes`.

Source: huggingface/text-generation-inference router/src/validation.rs, infer/mod.rs and server.rs of 3.x.
"""

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import jsonschema

from tests.standins.llama import Runner, RunnerError

DEFAULT_NEW_TOKENS = 1024


class ApiError(Exception):
    """A status, a text and an error type."""

    def __init__(self, status: int, text: str, kind: str) -> None:
        super().__init__(text)
        self.status = status
        self.body = {"error": text, "error_type": kind}


def invalid(text: str) -> ApiError:
    return ApiError(422, f"Input validation error: {text}", "validation")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the launcher was told; tokens and requests."""

    model_id: str
    max_input_tokens: int
    max_total_tokens: int
    max_concurrent_requests: int
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4


@dataclass(kw_only=True)
class Counts:
    """What /metrics tells."""

    requests: int = 0
    successes: int = 0
    input_tokens: int = 0
    generated_tokens: int = 0
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One token of an answer; the last one has a `reason`."""

    token: dict
    top_tokens: list[dict]
    reason: str | None
    prompt_tokens: int
    generated: int
    seed: int | None


class Answering:
    """The model, its limits and its counts."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self.limits = limits
        self.counts = Counts()
        self._runner = runner

    @property
    def is_well(self) -> bool:
        return self._runner.is_alive

    def rendered(self, messages: list, tools: object) -> str:
        try:
            body = {"messages": messages, **({"tools": tools} if tools else {})}
            return self._runner.ask("/apply-template", body)["prompt"]
        except RunnerError as error:
            raise ApiError(422, f"Template error: {error.text}", "template_error") from error

    def tokens(self, text: str) -> list[dict]:
        """Return the tokens of `text` with their places."""
        found = self._runner.ask("/tokenize", {"content": text, "with_pieces": True, "add_special": True})["tokens"]
        tokens, at = [], 0
        for one in found:
            piece = one["piece"] if isinstance(one["piece"], str) else bytes(one["piece"]).decode(errors="replace")
            length = len(piece) if text[at:].startswith(piece) else 0
            tokens.append({"id": one["id"], "text": piece, "start": at, "stop": at + length})
            at += length
        return tokens

    def generate(self, inputs: str, asked: Mapping, client: socket.socket | None = None) -> Iterator[Made]:
        """Yield the tokens of an answer to `inputs`; `asked` are the parameters of /generate."""
        with self.counts.lock:
            self.counts.requests += 1
            if self.counts.running >= self.limits.max_concurrent_requests:
                raise ApiError(429, "Model is overloaded", "overloaded")
            self.counts.running += 1
        try:
            yield from self._generated(inputs, asked, client)
        finally:
            with self.counts.lock:
                self.counts.running -= 1

    def _generated(self, inputs: str, asked: Mapping, client: socket.socket | None) -> Iterator[Made]:
        ids, limit = self._validated(inputs, asked)
        if asked.get("adapter_id") is not None:
            text = f"Request failed during generation: Server error: adapter {asked['adapter_id']} is not loaded"
            raise ApiError(424, text, "generation")
        seed = asked.get("seed")
        body = {
            "prompt": ids,
            "stream": True,
            "n_predict": limit,
            "n_probs": max(1, int(asked.get("top_n_tokens") or 0)),
            "seed": seed if seed is not None else secrets.randbelow(2**32),
            "temperature": _temperature(asked),
            "top_p": asked.get("top_p") or 1.0,
            "top_k": asked.get("top_k") or 0,
            "frequency_penalty": asked.get("frequency_penalty") or 0.0,
            "repeat_penalty": asked.get("repetition_penalty") or 1.0,
            **_grammar(asked.get("grammar")),
        }
        made = 0
        try:
            with contextlib.closing(self._runner.events("/completion", body, client)) as events:
                for piece in _tokens(events, asked.get("stop") or []):
                    last = self._made(piece, made + 1, len(ids), seed)
                    made = last.generated
                    yield last
        except RunnerError as error:
            text = f"Request failed during generation: Server error: {error.text}"
            raise ApiError(424, text, "generation") from error
        with self.counts.lock:
            self.counts.successes += 1
            self.counts.input_tokens += len(ids)
            self.counts.generated_tokens += made

    def _made(self, piece: Mapping, number: int, prompt_tokens: int, seed: int | None) -> Made:
        reason = None
        if piece["stop"]:
            kinds = {"limit": "length", "word": "stop_sequence"}
            reason = kinds.get(piece.get("stop_type", ""), "eos_token")
        probabilities = piece.get("completion_probabilities") or [{}]
        first = probabilities[0]
        token = {
            "id": int(first.get("id", 0)),
            "text": piece["content"],
            "logprob": float(first.get("logprob", 0.0)),
            "special": False,
        }
        top = [
            {"id": int(one["id"]), "text": one["token"], "logprob": float(one["logprob"]), "special": False}
            for one in first.get("top_logprobs", [])
        ]
        generated = int(piece.get("tokens_predicted") or number)
        return Made(
            token=token, top_tokens=top, reason=reason, prompt_tokens=prompt_tokens, generated=generated, seed=seed
        )

    def _validated(self, inputs: str, asked: Mapping) -> tuple[list[int], int]:
        """Return the prompt's tokens and how many may be made.

        Raises:
            ApiError: 422, in the words of the router.
        """
        if not inputs:
            raise invalid("`inputs` cannot be empty")
        _check_sampling(asked)
        if (asked.get("top_n_tokens") or 0) > self.limits.max_top_n_tokens:
            given = asked["top_n_tokens"]
            raise invalid(f"`top_n_tokens` must be >= 0 and <= {self.limits.max_top_n_tokens}. Given: {given}")
        if len(asked.get("stop") or []) > self.limits.max_stop_sequences:
            given = len(asked["stop"])
            raise invalid(f"`stop` supports up to {self.limits.max_stop_sequences} stop sequences. Given: {given}")
        ids = [one["id"] for one in self.tokens(inputs)]
        total, wanted = self.limits.max_total_tokens, asked.get("max_new_tokens")
        limit = min(max(0, total - len(ids)), DEFAULT_NEW_TOKENS) if wanted is None else int(wanted)
        if len(ids) + limit > total:
            raise invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
                f"Given: {len(ids)} `inputs` tokens and {limit} `max_new_tokens`"
            )
        if len(ids) > self.limits.max_input_tokens:
            most = self.limits.max_input_tokens
            raise invalid(f"`inputs` must have less than {most} tokens. Given: {len(ids)}")
        return ids, limit


def _check_sampling(asked: Mapping) -> None:
    temperature, top_p = asked.get("temperature"), asked.get("top_p")
    if temperature is not None and temperature <= 0:
        raise invalid("`temperature` must be strictly positive")
    if top_p is not None and not 0 < top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0")
    if not -2 <= (asked.get("frequency_penalty") or 0) <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if asked.get("max_new_tokens") == 0:
        raise invalid("`max_new_tokens` must be strictly positive")


def _temperature(asked: Mapping) -> float:
    is_sampling = asked.get("do_sample") or any(
        asked.get(name) is not None for name in ("temperature", "top_k", "top_p")
    )
    return float(asked.get("temperature") or 1.0) if is_sampling else 0.0


def _grammar(grammar: Mapping | None) -> dict:
    if grammar is None:
        return {}
    if grammar["type"] not in ("json", "json_schema"):
        raise invalid("grammar is not supported")
    schema = grammar["value"]["schema"] if grammar["type"] == "json_schema" else grammar["value"]
    if not isinstance(schema, dict):
        raise invalid("grammar is not supported")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise invalid(f"grammar is not valid: {error.message}") from error
    if "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    # llama.cpp's grammar lets any white space pass, in which a small model gets lost; TGI's takes one space at most.
    return {"json_schema": {**schema, "x-guidance": {"whitespace_flexible": False}}}


def _tokens(events: Iterator[dict], stops: list[str]) -> Iterator[dict]:
    """Yield one piece a token; the last one says why. A stop string that ends the answer stays in it.

    llama.cpp tells the end in a piece of its own, which is no token, and would keep a stop string to itself.
    """
    text, before = "", None
    for piece in events:
        text += piece["content"]
        if piece["stop"]:
            yield {**(before or piece), **piece, "content": (before or {"content": ""})["content"] + piece["content"]}
            return
        if any(text.endswith(stop) for stop in stops):
            if before is not None:
                yield before
            yield {**piece, "stop": True, "stop_type": "word"}
            return
        if before is not None:
            yield before
        before = piece
