"""Ollama's own API: /api/*.

Source: ollama/ollama server/routes.go and server/create.go of 0.33, docs/openapi.yaml.
"""

import json
from collections.abc import Iterator

from core.errors import Failure
from tests.standins.llama import RunnerError
from tests.standins.ollama.answering import Answering
from tests.standins.ollama.errors import ApiError
from tests.standins.ollama.store import DIGEST, SYSTEM, TEMPLATE, Model, parse_name
from tests.standins.serving import Handler

VERSION = "0.33.0"
_INVALID_NAME = "invalid model name"
_OFFLINE = (
    'pull model manifest: Get "https://registry.ollama.ai/v2/{path}/manifests/{tag}": '
    "dial tcp: lookup registry.ollama.ai: no such host"
)


def asked(handler: Handler) -> dict:
    """Return the body's object.

    Raises:
        ApiError: 400 for anything else.
    """
    if not handler.body:
        raise ApiError(400, "missing request body")
    try:
        value = json.loads(handler.body)
    except ValueError as error:
        raise ApiError(400, f"invalid character: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "json: cannot unmarshal value into Go value of type api request")
    return value


class Native:
    """The routes of /api; each answers through the handler."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._store = answering.store

    def version(self, handler: Handler) -> None:
        handler.json(200, {"version": VERSION})

    def tags(self, handler: Handler) -> None:
        handler.json(200, {"models": [self._summary(model) for model in self._store.models()]})

    def ps(self, handler: Handler) -> None:
        rows = []
        for entry in self._answering.scheduler.loaded():
            model = entry.model
            rows.append(
                {
                    "name": model.name.shortest,
                    "model": model.name.shortest,
                    "size": model.size,
                    "digest": model.digest,
                    "details": model.details,
                    "expires_at": entry.expires,
                    "size_vram": 0,
                    "context_length": entry.runner.load.context,
                }
            )
        handler.json(200, {"models": rows})

    def show(self, handler: Handler) -> None:
        request = asked(handler)
        name = request.get("model") or request.get("name")
        if not name:
            raise ApiError(400, "model is required")
        model = self._answering.model(name)
        family = model.config["model_family"]
        handler.json(
            200,
            {
                "parameters": "\n".join(f"{key:30} {value}" for key, value in model.parameters.items()),
                "template": model.template,
                "system": model.system,
                "details": model.details,
                "model_info": {"general.architecture": family},
                "capabilities": model.capabilities,
                "modified_at": model.modified_at.isoformat(),
            },
        )

    def chat(self, handler: Handler) -> None:
        request = asked(handler)
        self._stream(handler, self._answering.chat(request, handler.client), request, whole_chat)

    def generate(self, handler: Handler) -> None:
        request = asked(handler)
        self._stream(handler, self._answering.generate(request, handler.client), request, whole_generate)

    def embed(self, handler: Handler) -> None:
        handler.json(200, self._answering.embed(asked(handler), handler.client))

    def embeddings(self, handler: Handler) -> None:
        request = asked(handler)
        answer = self._answering.embed(
            {**request, "input": request.get("prompt") or "", "truncate": False}, handler.client
        )
        handler.json(200, {"embedding": answer["embeddings"][0] if answer["embeddings"] else []})

    def head_blob(self, handler: Handler) -> None:
        found = DIGEST.match(handler.argument) and self._store.blob(handler.argument).is_file()
        handler.whole(200 if found else 404, b"", "text/plain")

    def post_blob(self, handler: Handler) -> None:
        if not DIGEST.match(handler.argument):
            raise ApiError(400, "invalid digest format")
        length = int(handler.headers.get("content-length") or 0)
        if not self._store.receive(handler.argument, handler.rfile, length):
            raise ApiError(400, f'digest mismatch, expected "{handler.argument}"')
        handler.whole(201, b"", "text/plain")

    def create(self, handler: Handler) -> None:
        request = asked(handler)
        name = parse_name(str(request.get("model") or request.get("name") or ""))
        if name is None:
            raise ApiError(400, _INVALID_NAME)
        files = request.get("files") or {}
        if not files:
            raise ApiError(400, "neither 'from' or 'files' was specified")
        digest = next(iter(files.values()))
        if not DIGEST.match(digest) or not self._store.blob(digest).is_file():
            raise ApiError(400, f"invalid digest: {digest}")

        def progress() -> Iterator[dict]:
            yield {"status": "parsing GGUF"}
            texts = {TEMPLATE: request.get("template") or "", SYSTEM: request.get("system") or ""}
            try:
                self._store.create(name, digest, texts, request.get("parameters") or {})
            except Failure as failure:
                raise ApiError(400, "supplied file was not in GGUF format") from failure
            yield {"status": f"using existing layer {digest}"}
            yield {"status": "writing manifest"}
            yield {"status": "success"}

        self._stream(handler, progress(), request, lambda pieces: pieces[-1])

    def copy(self, handler: Handler) -> None:
        request = asked(handler)
        source, destination = (parse_name(str(request.get(key, ""))) for key in ("source", "destination"))
        if source is None or destination is None:
            raise ApiError(400, "source or destination is invalid")
        found = self._store.find(source)
        if found is None:
            raise ApiError(404, f'model "{request["source"]}" not found')
        self._store.copy(found, destination)
        handler.whole(200, b"", "text/plain")

    def delete(self, handler: Handler) -> None:
        request = asked(handler)
        model = self._answering.model(request.get("model") or request.get("name"))
        self._store.delete(model)
        handler.whole(200, b"", "text/plain")

    def pull(self, handler: Handler) -> None:
        self._offline(handler)

    def push(self, handler: Handler) -> None:
        self._offline(handler)

    def _offline(self, handler: Handler) -> None:
        request = asked(handler)
        name = parse_name(str(request.get("model") or request.get("name") or ""))
        if name is None:
            raise ApiError(400, _INVALID_NAME)

        def progress() -> Iterator[dict]:
            yield {"status": "pulling manifest"}
            raise ApiError(500, _OFFLINE.format(path=f"{name.namespace}/{name.model}", tag=name.tag))

        self._stream(handler, progress(), request, lambda pieces: pieces[-1])

    def _summary(self, model: Model) -> dict:
        return {
            "name": model.name.shortest,
            "model": model.name.shortest,
            "modified_at": model.modified_at.isoformat(),
            "size": model.size,
            "digest": model.digest,
            "details": model.details,
        }

    def _stream(self, handler: Handler, pieces: Iterator[dict], request: dict, whole: object) -> None:
        """Answer with NDJSON, or with one object; an error after the first line is a line of its own."""
        if request.get("stream") is False:
            handler.json(200, whole(list(pieces)))  # type: ignore[operator]
            return
        try:
            for piece in pieces:
                if not handler.is_started:
                    handler.begin("application/x-ndjson")
                handler.piece(json.dumps(piece).encode() + b"\n")
        except ApiError as error:
            if not handler.is_started:
                raise
            handler.piece(json.dumps({"error": error.text}).encode() + b"\n")
        handler.end()


def whole_chat(pieces: list[dict]) -> dict:
    """Return one `ChatResponse` made of all."""
    message = {**pieces[-1]["message"], "content": "".join(piece["message"]["content"] for piece in pieces)}
    if thinking := "".join(piece["message"].get("thinking", "") for piece in pieces):
        message["thinking"] = thinking
    return {**pieces[-1], "message": message, **_all_logprobs(pieces)}


def whole_generate(pieces: list[dict]) -> dict:
    """Return one `GenerateResponse` made of all."""
    return {**pieces[-1], "response": "".join(piece["response"] for piece in pieces), **_all_logprobs(pieces)}


def _all_logprobs(pieces: list[dict]) -> dict:
    found = [one for piece in pieces for one in piece.get("logprobs", [])]
    return {"logprobs": found} if found else {}


def as_api_error(error: Exception) -> ApiError:
    """Return what the server answers for an error that escaped a route."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RunnerError):
        return ApiError(500, error.text)
    return ApiError(400, str(error))
