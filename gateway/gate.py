"""Who may pass: the key of a visit checked against the current table, before anything else is read of it.

Comes in: a visit and its key's text. Goes out: the table that the visit is served by; the caller is noted in the visit.
Called by the surfaces. It must not say why a key is wrong before its secret was proven (`keys`).
"""

from collections.abc import Callable

from core.clock import Clock
from core.errors import Failure
from gateway import keys
from gateway.table import Table
from gateway.visit import Visit


class Gate:
    """The one check of keys; `table` gives the current snapshot."""

    def __init__(self, *, table: Callable[[], Table], pepper: bytes, clock: Clock) -> None:
        self._table = table
        self._pepper = pepper
        self._clock = clock

    @property
    def table(self) -> Table:
        """The current table, for what needs no key."""
        return self._table()

    def admit(self, visit: Visit, authorization: bytes | None = None) -> Table:
        """Return the current table and note the caller in `visit`, whose own key counts if no `authorization` is given.

        Raises:
            Failure: `auth.missing`, `auth.invalid`, `auth.key_revoked`, `auth.key_expired` or `door.no_routes`.
        """
        table = self._table()
        if table.version == 0 and not table.keys:
            raise Failure(
                "door.no_routes", "The front door has no routes yet", hint="the controller starts", retry_after_s=2
            )
        text = visit.authorization if authorization is None else authorization
        visit.caller = keys.caller(text, table.keys, self._pepper, self._clock.now().timestamp())
        return table
