"""The words of one exchange with an engine: what is sent to it, and how what it sends back becomes OpenAI's.

Comes in: a checked call, its route, the engine's dialect. Goes out: `Words`. Called by the relay, once an attempt.
Pure. An engine that speaks OpenAI's API gets the client's bytes, and the client its bytes.
"""

from typing import Protocol

from adapters.contract import Api, Dialect, Endpoint
from gateway.ollama.exchange import Exchange
from gateway.openai import assembly, embeddings, finishing, requests, stream
from gateway.table import Route
from gateway.upstream import EngineDied


class ErrorInside(Exception):
    """The engine began to answer and then said what went wrong; `body` is its error object."""

    def __init__(self, body: bytes) -> None:
        super().__init__("an error inside an answer")
        self.body = body


class Words(Protocol):
    """One exchange: `body` goes to the engine; what comes back as `stream_type` is passed on piece by piece."""

    body: bytes
    stream_type: bytes

    def events(self, name: stream.ModelName) -> stream.Events:
        """Return a fresh view of the answer's stream."""

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        """Return a whole answer.

        Raises:
            EngineDied: it is no answer.
            ErrorInside: it is an error.
        """


class _Same:
    """OpenAI's API on both sides; `ends` says what is to be changed where an answer ends."""

    stream_type = b"text/event-stream"

    def __init__(self, body: bytes, ends: finishing.Finishing | None = None, *, hides_usage: bool = False) -> None:
        self.body = body
        self._ends = ends
        self._hides_usage = hides_usage

    def events(self, name: stream.ModelName) -> stream.Events:
        passed = stream.EventStream(name, hides_usage=self._hides_usage)
        return passed if self._ends is None else finishing.FinishedStream(passed, self._ends)

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        return name.restore(body if self._ends is None else self._ends.whole(body))


class _Joined(_Same):
    """OpenAI's API on both sides, but the engine streams what the client gets whole."""

    stream_type = b""

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        made = assembly.assembled(body)
        if made.error is not None:
            raise ErrorInside(made.error)
        if not made.body:
            raise EngineDied("a stream that is no answer")
        return super().whole(name, made.body)


def words(endpoint: Endpoint, body: bytes, asked: requests.Asked, route: Route, dialect: Dialect | None) -> Words:
    """Return the words for a request whose `body` says `asked`.

    Raises:
        Failure: `door.parameter_unsupported` or `request.invalid_field`, for what this engine would ignore or break on.
    """
    said = _words(endpoint, body, asked, route, dialect)
    return said if endpoint is not Endpoint.EMBEDDINGS else embeddings.Fitted(said, asked, route.public_name)


def _words(endpoint: Endpoint, body: bytes, asked: requests.Asked, route: Route, dialect: Dialect | None) -> Words:
    if dialect is None:
        return _Same(_named(body, asked.model, route.served_name))
    if "required" in dialect.refused.get("tool_choice", ()) and b'"tool_choice"' in body:
        body = requests.with_named_tool(body)
    if dialect.refused:
        requests.check_refused(body, dialect.refused, route.public_name, route.engine)
    if dialect.api is Api.OLLAMA:
        return Exchange(endpoint, body, route.served_name, route.public_name)
    if requests.shapes_fields(dialect):
        body = requests.with_fields(body, dialect)
    body = _named(body, asked.model, dialect.fixed_model or route.served_name)
    hides_usage = False
    if asked.is_stream and not asked.wants_usage and dialect.tells_stream_usage and endpoint is not Endpoint.EMBEDDINGS:
        body, hides_usage = requests.with_usage(body, has_options=asked.has_stream_options), True
    ends = finishing.finishing(body, dialect)
    if dialect.is_deaf_while_whole and endpoint is not Endpoint.EMBEDDINGS and not asked.is_stream:
        return _Joined(requests.as_stream(body), ends)
    return _Same(body, ends, hides_usage=hides_usage)


def _named(body: bytes, asked: str, wanted: str) -> bytes:
    return body if asked == wanted else requests.with_model(body, wanted)
