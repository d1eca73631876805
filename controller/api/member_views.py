"""How membership looks in the admin API: join tokens, and where they are of use. Pure."""

from controller.api import views
from controller.identity.model import JoinToken
from controller.identity.tokens import Place


def listener(place: Place) -> views.Json | None:
    """Return where other machines reach the controller, or None when they cannot."""
    return {"host": place.host, "port": place.port, "join_port": place.port + 1} if place.host else None


def join_token(row: JoinToken, state: str) -> views.Json:
    """Return one join token, without its secret."""
    return {
        "id": row.token_id,
        "state": state,
        "name": row.node_name,
        "labels": dict(row.labels),
        "is_approving": row.is_approving,
        "created_at": views.instant(row.created_at),
        "expires_at": views.instant(row.expires_at),
        "revoked_at": views.instant(row.revoked_at),
        "used_at": views.instant(row.used_at),
        "used_by": row.used_by_node,
    }
