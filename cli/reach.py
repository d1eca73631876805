"""From an invocation to ready clients of its cluster: the seam between flags and network."""

from cli.client import Address, AdminClient
from cli.connection import Connection, api_key, connection, door_url
from cli.invocation import Invocation
from cli.openai_door import ChatDoor


def admin(invocation: Invocation) -> AdminClient:
    """Return the admin API of the cluster that `invocation` asks for.

    Raises:
        Failure: there is no such cluster, or its token cannot be read.
    """
    return admin_of(connection(invocation))


def admin_of(found: Connection) -> AdminClient:
    """Return the admin API of `found`."""
    address = Address(
        url=found.controller_url, who="controller", code="controller.unreachable", hint=found.unreachable_hint
    )
    return AdminClient(address, found.token)


def door(invocation: Invocation, client: AdminClient, key: str | None) -> ChatDoor:
    """Return the front door of that cluster, asking `client` where it is when nothing here says so.

    Raises:
        Failure: there is no API key, or the controller does not answer.
    """
    found = connection(invocation)
    secret = api_key(found, key, invocation.environment)
    reported = "" if found.openai_url else str(client.get("status")["openai_base_url"])
    return ChatDoor(door_url(found, reported), secret, hint=found.unreachable_hint)
