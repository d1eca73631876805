"""The words of one exchange with an engine: what is sent to it, and how what it sends back becomes OpenAI's.

Comes in: a checked call, its route, the engine's dialect. Goes out: `Words`. Called by the relay, once an attempt.
Pure. An engine that speaks OpenAI's API gets the client's bytes, and the client its bytes.
"""

from typing import Protocol

from adapters.contract import Api, Dialect, Endpoint
from gateway.ollama.exchange import Exchange
from gateway.openai import requests, stream
from gateway.table import Route


class Words(Protocol):
    """One exchange: `body` goes to the engine, `stream_type` is the content type of its streams."""

    body: bytes
    stream_type: bytes

    def events(self, name: stream.ModelName) -> stream.Events:
        """Return a fresh view of the answer's stream."""

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        """Return a whole answer.

        Raises:
            EngineDied: it is no answer.
        """


class _Same:
    """OpenAI's API on both sides."""

    stream_type = b"text/event-stream"

    def __init__(self, body: bytes) -> None:
        self.body = body

    def events(self, name: stream.ModelName) -> stream.Events:
        return stream.EventStream(name)

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        return name.restore(body)


def words(endpoint: Endpoint, body: bytes, asked_model: str, route: Route, dialect: Dialect | None) -> Words:
    """Return the words for a request that names `asked_model`.

    Raises:
        Failure: `door.parameter_unsupported` or `request.invalid_field`, for what this engine would ignore or break on.
    """
    if dialect is None:
        return _Same(_named(body, asked_model, route.served_name))
    if dialect.refused:
        requests.check_refused(body, dialect.refused, route.public_name, route.engine)
    if dialect.api is Api.OLLAMA:
        return Exchange(endpoint, body, route.served_name, route.public_name)
    if requests.shapes_fields(dialect):
        body = requests.with_fields(body, dialect)
    return _Same(_named(body, asked_model, dialect.fixed_model or route.served_name))


def _named(body: bytes, asked: str, wanted: str) -> bytes:
    return body if asked == wanted else requests.with_model(body, wanted)
