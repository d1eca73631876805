"""Writes batches of hellos: one transaction for all that came by their certificates, one each for the unix socket.

Comes in: knocks from `controller.fleet.reception`. Goes out: rows, or why there are none. One hello whose words the
database does not take must not keep the others waiting: then each is written by itself.
"""

from collections.abc import Callable, Sequence

import psycopg

from controller.fleet import session as protocol
from controller.fleet import store
from controller.fleet.model import Refuse
from controller.fleet.reception import Knock
from core.errors import Failure
from core.ids import NodeId
from core.infra import postgres
from core.infra.logs import Log


class Greeting:
    """`unwritten` hears of nodes that live but could not be written, for want of a database."""

    def __init__(self, database: postgres.Database, unwritten: Callable[[NodeId], None], log: Log) -> None:
        self._database = database
        self._unwritten = unwritten
        self._log = log

    async def write(self, knocks: Sequence[Knock]) -> None:
        """Write `knocks` and answer each."""
        far = [knock for knock in knocks if knock.is_remote]
        if far:
            await self._written(far)
        for knock in knocks:
            if not knock.is_remote:
                await self._written([knock])

    async def _written(self, knocks: Sequence[Knock]) -> None:
        try:
            await postgres.repeated(lambda: self._in_one(knocks))
        except Failure as failure:
            for knock in knocks:
                self._unwritten(knock.hello.node_id)
                knock.tell(Refuse(code=failure.code, message=failure.message, hint=failure.hint, retry_after_ms=2000))
        except psycopg.Error as error:
            if len(knocks) > 1:
                for knock in knocks:
                    await self._written([knock])
                return
            self._log.error("hello_unwritable", node=knocks[0].hello.node_id, exc=error)
            knocks[0].tell(Refuse(code="internal.unexpected", message="this hello cannot be recorded"))

    async def _in_one(self, knocks: Sequence[Knock]) -> None:
        async with self._database.transaction() as connection:
            if knocks[0].is_remote:
                rows = {row.node_id: row for row in await store.greet(connection, [knock.hello for knock in knocks])}
            else:
                hello = knocks[0].hello
                known = await store.node(connection, hello.node_id)
                refusal = protocol.membership(hello, known, is_remote=False)
                if refusal is not None:
                    knocks[0].tell(refusal)
                    return
                rows = {hello.node_id: await store.upsert(connection, hello)}
        for knock in knocks:
            row = rows.get(knock.hello.node_id)
            refusal = protocol.membership(knock.hello, row, is_remote=knock.is_remote) if row is None else None
            if row is not None:
                knock.tell(row)
            elif refusal is not None:
                knock.tell(refusal)
