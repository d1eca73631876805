"""The models list: routes as OpenAI's `Model` objects. Comes in: routes. Goes out: JSON bytes. Pure."""

from collections.abc import Iterable

import msgspec

from gateway.table import Route

_OWNER = "slice"
_encode = msgspec.json.Encoder().encode


def _model(route: Route) -> dict[str, object]:
    return {"id": route.public_name, "object": "model", "created": route.created_unix_s, "owned_by": _OWNER}


def model_body(route: Route) -> bytes:
    """Return the body of `GET /v1/models/{id}`."""
    return _encode(_model(route))


def models_body(routes: Iterable[Route]) -> bytes:
    """Return the body of `GET /v1/models`, sorted by name; routes that nothing serves now are listed too."""
    data = [_model(route) for route in sorted(routes, key=lambda route: route.public_name)]
    return _encode({"object": "list", "data": data})
