"""TGI's routes: its own and those that look like OpenAI's, with what they do not hear.

A request's `model` other than "tgi" is the name of a LoRA adapter. `stop` is a list or an error. `n` and `logit_bias`
are read and unused. A schema stands in the `value` of `response_format`. An answer ended by a stop string holds it, and
names its reason `stop_sequence`. Errors are {"error", "error_type"}; inside a chat's stream they are an event with a
status of its own.

Source: huggingface/text-generation-inference router/src/server.rs, chat.rs, lib.rs, docs/openapi.json of 3.3 and
server/text_generation_server/utils/tokens.py.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping

from tests.standins.serving import Handler
from tests.standins.tgi import tools
from tests.standins.tgi.answering import Answering, ApiError, Made

VERSION = "3.3.7"
_FINGERPRINT = f"{VERSION}-native"
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("stop", "messages", "tools", "logit_bias"), (list,)),
    **dict.fromkeys(("max_tokens", "seed", "n", "top_logprobs"), (int,)),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), (int, float)),
    **dict.fromkeys(("stream", "logprobs"), (bool,)),
    **dict.fromkeys(("model", "suffix"), (str,)),
    "stream_options": (dict,),
    "tool_choice": (str, dict),
}
_REASONS = {"eos_token": "stop"}
"""Of chats and whole completions; every other reason is said as it is."""


class BodyError(Exception):
    """A body that does not have the form; answered as plain text."""


def asked(handler: Handler, *required: str) -> dict:
    try:
        value = json.loads(handler.body or b"")
    except ValueError as error:
        raise BodyError(f"Failed to parse the request body as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BodyError("Failed to deserialize the JSON body into the target type: invalid type")
    for name in required:
        if name not in value:
            raise BodyError(f"Failed to deserialize the JSON body into the target type: missing field `{name}`")
    for name, kinds in _KINDS.items():
        given = value.get(name)
        if given is not None and (not isinstance(given, kinds) or (isinstance(given, bool) and bool not in kinds)):
            raise BodyError(f"Failed to deserialize the JSON body into the target type: {name}: invalid type")
    for tool in value.get("tools") or []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not {"parameters", "arguments"} & set(function) or "name" not in function:
            raise BodyError("Failed to deserialize the JSON body into the target type: tools: missing field")
    choice = value.get("tool_choice")
    if isinstance(choice, dict) and "name" not in (choice.get("function") or {}):
        raise BodyError("Failed to deserialize the JSON body into the target type: tool_choice")
    return value


class Routes:
    """Everything that the router answers."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def health(self, handler: Handler) -> None:
        if self._answering.is_well:
            handler.whole(200, b"", "text/plain")
        else:
            handler.json(503, {"error": "unhealthy", "error_type": "healthcheck"})

    def info(self, handler: Handler) -> None:
        limits = self._answering.limits
        handler.json(
            200,
            {
                "model_id": limits.model_id,
                "model_sha": None,
                "model_pipeline_tag": None,
                "max_concurrent_requests": limits.max_concurrent_requests,
                "max_best_of": 2,
                "max_stop_sequences": limits.max_stop_sequences,
                "max_input_tokens": limits.max_input_tokens,
                "max_total_tokens": limits.max_total_tokens,
                "validation_workers": 2,
                "max_client_batch_size": limits.max_client_batch_size,
                "router": "text-generation-router",
                "version": VERSION,
                "sha": None,
                "docker_label": None,
            },
        )

    def models(self, handler: Handler) -> None:
        name = self._answering.limits.model_id
        data = [{"id": name, "object": "model", "created": 0, "owned_by": name}]
        handler.json(200, {"object": "list", "data": data})

    def metrics(self, handler: Handler) -> None:
        counts = self._answering.counts
        numbers = {
            "tgi_request_count": counts.requests,
            "tgi_request_success": counts.successes,
            "tgi_request_input_length_sum": counts.input_tokens,
            "tgi_request_generated_tokens_sum": counts.generated_tokens,
            "tgi_batch_current_size": counts.running,
            "tgi_queue_size": 0,
        }
        handler.text(200, "".join(f"{name} {value}\n" for name, value in numbers.items()))

    def tokenize(self, handler: Handler) -> None:
        handler.json(200, self._answering.tokens(str(asked(handler, "inputs")["inputs"])))

    def chat_tokenize(self, handler: Handler) -> None:
        request = asked(handler, "messages")
        text = self._answering.rendered(request["messages"], request.get("tools"))
        handler.json(200, {"tokenize_response": self._answering.tokens(text), "templated_text": text})

    def generate(self, handler: Handler) -> None:
        request = asked(handler, "inputs")
        parameters = request.get("parameters") or {}
        made = list(self._answering.generate(request["inputs"], parameters, handler.client))
        answer = {"generated_text": "".join(one.token["text"] for one in made)}
        if parameters.get("details"):
            last = made[-1]
            answer["details"] = {
                "finish_reason": last.reason,
                "generated_tokens": last.generated,
                "seed": last.seed,
                "prefill": [],
                "tokens": [one.token for one in made],
            }
        handler.json(200, answer)

    def generate_stream(self, handler: Handler) -> None:
        request = asked(handler, "inputs")
        parameters = request.get("parameters") or {}

        def events() -> Iterator[dict]:
            text = ""
            for index, one in enumerate(self._answering.generate(request["inputs"], parameters, handler.client), 1):
                text += one.token["text"]
                event = {"index": index, "token": one.token, "generated_text": None, "details": None}
                if one.reason is not None:
                    details = {"finish_reason": one.reason, "generated_tokens": one.generated, "seed": one.seed}
                    event |= {"generated_text": text, "details": {**details, "input_length": one.prompt_tokens}}
                yield event

        self._stream(handler, events(), lambda error: error.body, is_done_sent=False)

    def chat(self, handler: Handler) -> None:
        request = asked(handler, "messages")
        form, given = request.get("response_format"), request.get("tools")
        if form is not None and given is not None:
            raise tools.tool_error("Grammar and tools are mutually exclusive")
        if form is not None and form.get("type") not in ("json", "json_object", "regex", "json_schema"):
            raise BodyError(f"response_format: unknown variant `{form.get('type')}`, expected `json`, `regex`")
        if form is not None and "value" not in form:
            raise BodyError("response_format: missing field `value`")
        schema = tools.schema_of(given or [], request.get("tool_choice"))
        if request.get("stream"):
            wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            chunks = self._chat_chunks(handler, request, schema, wants_usage=wants_usage)
            self._stream(handler, chunks, _openai_error, is_done_sent=True)
            return
        whole = list(self._made(handler, request, schema))
        text = "".join(one.token["text"] for one in whole)
        message: dict = {"role": "assistant", "content": text}
        if schema is not None:
            name, arguments = tools.call_in(text)
            if name == tools.NO_TOOL:
                whole = list(self._made(handler, request, None))
                message["content"] = "".join(one.token["text"] for one in whole)
            else:
                function = {"description": None, "name": name, "arguments": arguments}
                call = {"id": secrets.token_hex(5), "type": "function", "function": function}
                message = {"role": "assistant", "tool_calls": [call]}
        logprobs = {"content": [_logprob(one) for one in whole]} if request.get("logprobs") else None
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": _reason(whole[-1])}
        answer = {**self._head("chat.completion"), "choices": [choice], "usage": _usage(whole[-1])}
        handler.json(200, answer, {"x-prompt-tokens": str(whole[-1].prompt_tokens)})

    def _made(self, handler: Handler, request: Mapping, schema: dict | None) -> Iterator[Made]:
        """Yield the tokens of a chat, as a call of a tool when there is a schema for one."""
        inputs = self._answering.rendered(request["messages"], request.get("tools") if schema else None)
        penalty = request.get("presence_penalty")
        parameters = {
            **_sampling(request),
            "repetition_penalty": None if penalty is None else penalty + 2.0,
            "grammar": request.get("response_format") if schema is None else {"type": "json", "value": schema},
            "top_n_tokens": request.get("top_logprobs"),
        }
        return self._answering.generate(inputs, parameters, handler.client)

    def completions(self, handler: Handler) -> None:
        request = asked(handler, "prompt")
        if request.get("suffix") is not None:
            text = "Suffix is not supported and can be achieved by preprocessing the prompt."
            raise ApiError(422, text, "suffix not supported")
        prompts = [request["prompt"]] if isinstance(request["prompt"], str) else request["prompt"]
        most = self._answering.limits.max_client_batch_size
        if len(prompts) > most:
            text = f"Number of prompts exceeds the maximum allowed batch size of {most}"
            raise ApiError(422, text, "batch size exceeded")
        parameters = {**_sampling(request), "repetition_penalty": request.get("repetition_penalty")}
        if request.get("stream"):
            chunks = (
                chunk
                for index, prompt in enumerate(prompts)
                for chunk in self._text_chunks(index, self._answering.generate(prompt, parameters, handler.client))
            )
            self._stream(handler, chunks, lambda error: error.body, is_done_sent=True)
            return
        answers = [list(self._answering.generate(prompt, parameters, handler.client)) for prompt in prompts]
        choices = [
            {
                "index": index,
                "text": "".join(one.token["text"] for one in made),
                "logprobs": None,
                "finish_reason": _reason(made[-1]),
            }
            for index, made in enumerate(answers)
        ]
        prompt_tokens = sum(made[-1].prompt_tokens for made in answers)
        generated = sum(made[-1].generated for made in answers)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated,
        }
        handler.json(200, {**self._head("text_completion"), "choices": choices, "usage": usage})

    def _chat_chunks(
        self, handler: Handler, request: Mapping, schema: dict | None, *, wants_usage: bool
    ) -> Iterator[dict]:
        def chunk(one: Made, delta: dict) -> Iterator[dict]:
            logprobs = {"content": [_logprob(one)]} if request.get("logprobs") else None
            reason = None if one.reason is None else _reason(one)
            choice = {"index": 0, "delta": {"role": "assistant", **delta}, "logprobs": logprobs}
            yield {**self._head("chat.completion.chunk"), "choices": [{**choice, "finish_reason": reason}]}
            if one.reason is not None and wants_usage:
                yield {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(one)}

        call_id = secrets.token_hex(5)
        for name, arguments, one in tools.pieces(self._made(handler, request, schema)) if schema else ():
            if name == tools.NO_TOOL:
                schema = None
                break
            call = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            yield from chunk(one, {"tool_calls": [call]})
        if schema is None:
            for one in self._made(handler, request, None):
                yield from chunk(one, {"content": one.token["text"]})

    def _text_chunks(self, index: int, made: Iterator[Made]) -> Iterator[dict]:
        for one in made:
            # The chunks before the last have an empty reason, the last one TGI's own word and the usage.
            choice = {"index": index, "text": one.token["text"], "logprobs": None, "finish_reason": one.reason or ""}
            chunk = {**self._head("text_completion"), "choices": [choice]}
            yield chunk if one.reason is None else {**chunk, "usage": _usage(one)}

    def _head(self, kind: str) -> dict:
        name = self._answering.limits.model_id
        fixed = {"id": "", "object": kind, "created": int(time.time())}
        return {**fixed, "model": name, "system_fingerprint": _FINGERPRINT}

    @staticmethod
    def _stream(
        handler: Handler, events: Iterator[dict], error_event: Callable[[ApiError], dict], *, is_done_sent: bool
    ) -> None:
        """Answer 200 whatever comes: validation happens inside the stream."""
        handler.begin("text/event-stream", {"x-accel-buffering": "no"})
        try:
            for event in events:
                handler.piece(b"data:" + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
        except ApiError as error:
            handler.piece(b"data:" + json.dumps(error_event(error), separators=(",", ":")).encode() + b"\n\n")
        if is_done_sent:
            handler.piece(b"data:[DONE]\n\n")
        handler.end()


def _openai_error(error: ApiError) -> dict:
    return {"error": {"message": error.body["error"], "http_status_code": error.status}}


def _sampling(request: Mapping) -> dict:
    temperature = request.get("temperature")
    name = request.get("model")
    return {
        "do_sample": temperature != 0,
        "temperature": None if temperature == 0 else temperature,
        "top_p": request.get("top_p"),
        "seed": request.get("seed"),
        "stop": request.get("stop"),
        "max_new_tokens": request.get("max_tokens"),
        "frequency_penalty": request.get("frequency_penalty"),
        "adapter_id": None if name in (None, "tgi") else name,
    }


def _reason(last: Made) -> str:
    reason = last.reason or ""
    return _REASONS.get(reason, reason)


def _usage(last: Made) -> dict:
    prompt, generated = last.prompt_tokens, last.generated
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _logprob(one: Made) -> dict:
    top = [{"token": token["text"], "logprob": token["logprob"]} for token in one.top_tokens]
    return {"token": one.token["text"], "logprob": one.token["logprob"], "top_logprobs": top}
