"""gRPC as this house uses it: channel and server options, mTLS, and bearer credentials where there is none."""

from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any

import grpc

from core.identities import Identity
from core.infra.credentials import Credentials

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A silent peer shows within 30 s even when nothing is sent; our own heartbeats show it much sooner.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 4 * 1024**2),
    # Reconnects are ours to pace; gRPC's own back-off, which comes on top, would add up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 4 * 1024**2),
)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the call metadata that carries `token`; none for ""."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def secure_channel(target: str, own: Credentials | None, authority_pem: str, server: Identity) -> grpc.aio.Channel:
    """Return a channel to `server` at `target` (HOST:PORT) by TLS, and by mTLS when we have credentials of our own.

    Certificates name processes, never addresses, so the name that is compared is the identity's.
    """
    given = grpc.ssl_channel_credentials(
        root_certificates=authority_pem.encode(),
        private_key=None if own is None else own.key_pem.encode(),
        certificate_chain=None if own is None else own.certificate_pem.encode(),
    )
    named: tuple[tuple[str, int | str], ...] = (("grpc.ssl_target_name_override", server.dns_name),)
    return grpc.aio.secure_channel(target, given, options=(*CHANNEL_OPTIONS, *named))


class BearerGate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Refuses every call whose token is not the one of the called service.

    `tokens` maps a full service name (`slice.node.v1.NodeControl`) to its token; a service that is absent is refused,
    so a new one is closed until somebody decides who may call it.
    """

    def __init__(self, tokens: dict[str, str]) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any]"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the real handler, or one of the same shape that aborts with UNAUTHENTICATED."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.lstrip("/").rpartition("/")[0]
        expected = self._tokens.get(service)
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        if handler is None or (expected and compare_digest(str(given).encode(), f"Bearer {expected}".encode())):
            return handler
        return _refusing(handler)


async def _refuse(_: object, context: "grpc.aio.ServicerContext[object, object]") -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "auth.missing: this call needs the bearer token of its service"
    )


async def _refuse_stream(_: object, context: "grpc.aio.ServicerContext[object, object]") -> object:
    await _refuse(_, context)
    yield None  # pragma: no cover - makes this an async generator; abort has raised


def _refusing(handler: "grpc.RpcMethodHandler[Any, Any]") -> "grpc.RpcMethodHandler[Any, Any]":
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(_refuse_stream)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(_refuse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_refuse_stream)
    return grpc.unary_unary_rpc_method_handler(_refuse)
