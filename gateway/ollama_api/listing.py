"""The models as Ollama lists them: tags, ps, show and version, from the route table alone. Pure. Called by the surface.

What the table does not say is left out, but for what Ollama's own client cannot do without: a digest is 64 zeros for a
model that is no file here, and one that is loaded expires in the year 2318 (Ollama's word for never).

Source: ollama/ollama docs/openapi.yaml and docs/api.md of 0.33, cmd/cmd.go (what `ollama list` and `ollama ps` read).
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from adapters.contract import Capability
from gateway.table import Card, KeyEntry, Route, Table

API_VERSION = "0.33.0"
"""The release of Ollama whose API this is; clients compare it with what they need."""
LATEST = ":latest"
_NEVER = "2318-01-01T00:00:00Z"
_NO_DIGEST = "0" * 64
_UNITS = ((1_000_000_000_000, "T"), (1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K"))
_encode = msgspec.json.Encoder().encode


def named(table: Table, caller: KeyEntry | None, name: str) -> Route | None:
    """Return the route that `name` means to `caller`, with or without Ollama's tag `:latest`."""
    found = _known(table, caller).get(name)
    if found is None and name.endswith(LATEST):
        found = _known(table, caller).get(name.removesuffix(LATEST))
    return found


def names(table: Table, caller: KeyEntry | None) -> Iterable[str]:
    """Return the public names that `caller` may know of."""
    return _known(table, caller)


def leaf(table: Table, route: Route) -> Route:
    """Return a route with an engine of its own: the heaviest arm's of one that only divides its requests."""
    if not route.arms:
        return route
    arm = max(route.arms, key=lambda one: one.weight)
    return table.routes.get(arm.route, route)


def is_loaded(table: Table, route: Route) -> bool:
    """Return whether a replica could answer now."""
    parts = [table.routes.get(arm.route) for arm in route.arms if arm.weight] if route.arms else [route]
    return any(part is not None and part.targets for part in parts) and not route.disabled


def tags_body(table: Table, caller: KeyEntry | None) -> bytes:
    """Return the body of GET /api/tags: every model that `caller` may ask for, also those that nothing serves now."""
    routes = _sorted(_known(table, caller).values())
    return _encode({"models": [{**_summary(table, one), "modified_at": _modified(one)} for one in routes]})


def ps_body(table: Table, caller: KeyEntry | None) -> bytes:
    """Return the body of GET /api/ps: the models that have a replica which answers."""
    models = []
    for route in _sorted(one for one in _known(table, caller).values() if is_loaded(table, one)):
        card = leaf(table, route).card
        loaded = {"size": card.memory_bytes, "size_vram": card.device_bytes, "expires_at": _NEVER}
        context = {"context_length": card.served_context} if card.served_context else {}
        models.append({**_summary(table, route), **loaded, **context})
    return _encode({"models": models})


def show_body(table: Table, route: Route) -> bytes:
    """Return the body of POST /api/show; templates, parameters and licences are not told to doors."""
    found = leaf(table, route)
    card = found.card
    info: dict[str, Any] = {}
    if card.architecture:
        info["general.architecture"] = card.architecture
        for name, value in (("context_length", card.context_length), ("embedding_length", card.embedding_length)):
            if value:
                info[f"{card.architecture}.{name}"] = value
    if card.parameters:
        info["general.parameter_count"] = card.parameters
    parameters = f"num_ctx {card.served_context}" if card.served_context else ""
    return _encode(
        {
            "modelfile": "",
            "parameters": parameters,
            "template": "",
            "details": _details(card),
            "model_info": info,
            "capabilities": _capabilities(found),
            "modified_at": _modified(route),
        }
    )


def version_body(release: str) -> bytes:
    """Return the body of GET /api/version: whose API this is, and beside it which release of ours."""
    return _encode({"version": API_VERSION, "slice": release})


def _known(table: Table, caller: KeyEntry | None) -> Mapping[str, Route]:
    visible = table.visible()
    if caller is None or not caller.models:
        return visible
    return {name: route for name, route in visible.items() if name in caller.models}


def _sorted(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda one: one.public_name)


def _summary(table: Table, route: Route) -> dict[str, Any]:
    card = leaf(table, route).card
    name = route.public_name + LATEST
    digest = card.digest or _NO_DIGEST
    return {"name": name, "model": name, "size": card.size_bytes, "digest": digest, "details": _details(card)}


def _details(card: Card) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": card.format,
        "family": card.architecture,
        "families": [card.architecture] if card.architecture else [],
        "parameter_size": _rounded(card.parameters),
        "quantization_level": card.quantization,
    }


def _rounded(count: int) -> str:
    """Return a number of parameters as Ollama writes it: 8.0B, 134.5M, "" when it is not known."""
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count) if count else ""


def _capabilities(route: Route) -> list[str]:
    """Return Ollama's words for what the model can do here; whether it sees or thinks is not known to doors."""
    found = []
    if {Capability.CHAT.value, Capability.COMPLETIONS.value} & route.endpoints:
        found.append("completion")
    if Capability.EMBEDDINGS.value in route.endpoints:
        found.append("embedding")
    if Capability.CHAT.value in route.endpoints and Capability.TOOLS.value in route.card.capabilities:
        found.append("tools")
    return found


def _modified(route: Route) -> str:
    return datetime.fromtimestamp(route.created_unix_s, UTC).isoformat().replace("+00:00", "Z")
