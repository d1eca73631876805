"""PostgreSQL as this house uses it: one pool, explicit transactions, one error table, one migration runner.

Comes in: a libpq URL and, for migrations, a folder of numbered plain SQL. Goes out: psycopg connections inside
`Database.transaction`, dataclasses by `class_row`, and `Failure` with a `storage.*` code. Called by stores and
composition roots. It knows no table but `<schema>.schema_migration`, and no driver error leaves it untranslated.
"""

import asyncio
import hashlib
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, TypeVar

import psycopg
import psycopg_pool
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import class_row, tuple_row

from core.errors import Failure

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Row = TypeVar("Row")
Params = dict[str, Any]

RETRY_AFTER_S = 2.0
"""What a caller is told to wait when PostgreSQL does not answer: a local restart takes about a second."""

CHECK_S = 1.5
"""Longest answer to the empty query that proves an idle connection; a local one takes 0.1 ms."""

_MIGRATION_FILE = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_LOCK = "slice-migrations"


class Database:
    """A pool of autocommit connections; work happens in `transaction`, single reads in `connection`.

    `statement_timeout_s` bounds one statement in the server, `block_timeout_s` a whole block here: the second also
    ends waits on a server that is frozen and will never answer. `on_commit` is called after each committed writing
    transaction, so that followers of what was written wake up.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        pool_size: int = 8,
        statement_timeout_s: float = 8.0,
        block_timeout_s: float = 10.0,
        acquire_timeout_s: float = 2.0,
        on_commit: Callable[[], None] | None = None,
    ) -> None:
        self._statement_timeout_ms = int(statement_timeout_s * 1000)
        self._block_timeout_s = block_timeout_s
        self._acquire_timeout_s = acquire_timeout_s
        self._on_commit = on_commit
        self._pool: psycopg_pool.AsyncConnectionPool[Connection] = psycopg_pool.AsyncConnectionPool(
            url,
            open=False,
            min_size=1,
            max_size=pool_size,
            timeout=acquire_timeout_s,
            # The pool's own back-off doubles without a cap, so a long outage would be noticed minutes after its end.
            # Giving up at once makes the next caller's request the next attempt.
            reconnect_timeout=0.1,
            check=_check,
            configure=self._configure,
            kwargs={"autocommit": True, "connect_timeout": 2, "application_name": name},
            name=name,
        )

    async def open(self) -> None:
        """Start the pool without waiting for PostgreSQL to answer."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection; waits at most two seconds for those in use."""
        await self._pool.close(timeout=2.0)

    def stats(self) -> dict[str, int]:
        """Return the pool's counters (psycopg_pool `get_stats`)."""
        return dict(self._pool.get_stats())

    async def _configure(self, connection: Connection) -> None:
        await connection.execute(
            "SELECT set_config('statement_timeout', %(ms)s, false), set_config('timezone', 'UTC', false), "
            "set_config('idle_in_transaction_session_timeout', '30s', false)",
            {"ms": f"{self._statement_timeout_ms}ms"},
        )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend an autocommit connection, for single statements.

        Raises:
            Failure: `storage.unavailable` when PostgreSQL does not answer in time or went away.
        """
        try:
            async with self._pool.connection() as connection:
                with _deadline(connection, self._block_timeout_s):
                    yield connection
        except (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests) as error:
            raise _unavailable() from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise _unavailable() from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection inside a read-committed transaction that commits when the block ends well.

        Raises:
            Failure: `storage.unavailable` as for `connection`; then nothing is known of the commit.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection
        if self._on_commit is not None:
            self._on_commit()

    @asynccontextmanager
    async def work(self, joined: Connection | None) -> AsyncIterator[Connection]:
        """Lend `joined`, whose transaction is its owner's to end, or without one a transaction as `transaction` does.

        Raises:
            Failure: `storage.unavailable` as for `connection`.
        """
        if joined is not None:
            yield joined
            return
        async with self.transaction() as own:
            yield own

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Lend a connection whose reads all see the same instant (repeatable read, read only).

        Raises:
            Failure: `storage.unavailable` as for `connection`.
        """
        async with self.connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection


async def repeated(work: Callable[[], Awaitable[Row]]) -> Row:
    """Return what `work` does in transactions of its own, tried once more when it was ended to resolve a deadlock.

    Raises:
        Failure: as `work` does; `storage.unavailable` when it met a deadlock again.
    """
    try:
        return await work()
    except Failure as failure:
        if not isinstance(failure.__cause__, pg.DeadlockDetected):
            raise
    return await work()


@contextmanager
def _deadline(connection: Connection, seconds: float) -> Iterator[None]:
    """Cut the line of `connection` when the block takes longer than `seconds`; its query then fails by itself.

    Cancelling the task instead would hang: psycopg asks the server to cancel and waits for the answer, which a frozen
    server never gives (`AsyncConnection.wait`).
    """
    timer = asyncio.get_running_loop().call_later(seconds, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: Connection) -> None:
    if connection.closed:
        return
    with suppress(OSError):
        line = socket.socket(fileno=os.dup(connection.fileno()))
        try:
            line.shutdown(socket.SHUT_RDWR)
        finally:
            line.close()


async def _check(connection: Connection) -> None:
    with _deadline(connection, CHECK_S):
        await connection.execute("")


def _unavailable() -> Failure:
    return Failure(
        "storage.unavailable",
        "the database does not answer",
        hint="loaded models serve on; try again in a few seconds, or look at `slice doctor`",
        retry_after_s=RETRY_AFTER_S,
    )


async def fetch_all(
    connection: Connection, kind: type[Row], query: LiteralString, params: Params | None = None
) -> list[Row]:
    """Return every row of `query` as a `kind`, whose fields are named as its columns."""
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, params)
        return await cursor.fetchall()


async def fetch_one(
    connection: Connection, kind: type[Row], query: LiteralString, params: Params | None = None
) -> Row | None:
    """Return the first row of `query` as a `kind`, or None."""
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, params)
        return await cursor.fetchone()


async def execute(connection: Connection, query: LiteralString, params: Params | None = None) -> int:
    """Run `query` and return how many rows it touched."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(query, params)
        return cursor.rowcount


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One numbered file of plain SQL; `sha256` is of its bytes, so that a changed old file is noticed."""

    number: int
    name: str
    text: str
    sha256: str


def load_migrations(folder: Path) -> tuple[Migration, ...]:
    """Return the migrations of `folder` in order; blocks on files, so call it in a thread.

    Raises:
        ValueError: the numbers are not 1, 2, 3, ... - a fault of the release, not of the user.
    """
    found = []
    for file in sorted(folder.glob("*.sql")):
        match = _MIGRATION_FILE.match(file.name)
        if match is None:
            raise ValueError(f"{file.name} is not named NNNN_words.sql")
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        found.append(Migration(number=int(match[1]), name=file.stem, text=content.decode(), sha256=digest))
    if [item.number for item in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations in {folder} are not numbered 1 to {len(found)}")
    return tuple(found)


async def migrate(database: Database, schema: str, migrations: tuple[Migration, ...]) -> int:
    """Bring `schema` up to the last of `migrations`, each in a transaction of its own, and return the number reached.

    Safe to call from several processes at once: an advisory lock lets one at a time in.

    Raises:
        Failure: `storage.migration_changed`, `storage.schema_newer`, `storage.extension_missing` or
            `storage.unavailable`.
    """
    async with database.transaction() as connection:
        await _lock(connection)
        await _prepare(connection, schema)
    applied = await _applied(database, schema)
    _check_applied(applied, migrations)
    for migration in migrations:
        if migration.number not in applied:
            await _apply(database, schema, migration)
    return len(migrations)


async def _lock(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%(name)s))", {"name": _LOCK})


async def _prepare(connection: Connection, schema: str) -> None:
    await _ensure_vector(connection)
    await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    await connection.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {}.schema_migration (number int PRIMARY KEY, name text NOT NULL, "
            "sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        ).format(sql.Identifier(schema))
    )


async def _ensure_vector(connection: Connection) -> None:
    cursor = await connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    if await cursor.fetchone():
        return
    # The savepoint keeps the outer transaction usable until the failure has been named.
    try:
        async with connection.transaction():
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (pg.FeatureNotSupported, pg.UndefinedFile) as error:
        raise Failure(
            "storage.extension_missing",
            "this PostgreSQL has no pgvector",
            hint="install the package for its version (Debian: postgresql-NN-pgvector), or leave database_url empty",
        ) from error
    except pg.InsufficientPrivilege as error:
        raise Failure(
            "storage.extension_missing",
            "this database user may not create the extension vector",
            hint="let a superuser run `CREATE EXTENSION vector` in this database once",
        ) from error


async def _applied(database: Database, schema: str) -> dict[int, str]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            sql.SQL("SELECT number, sha256 FROM {}.schema_migration").format(sql.Identifier(schema))
        )
        return {int(number): str(digest) for number, digest in await cursor.fetchall()}


def _check_applied(applied: dict[int, str], migrations: tuple[Migration, ...]) -> None:
    newest = max(applied, default=0)
    if newest > len(migrations):
        raise Failure(
            "storage.schema_newer",
            f"the database is at schema {newest}, this release knows {len(migrations)}",
            hint="run the newer release, or give this one a database of its own",
        )
    for migration in migrations:
        if applied.get(migration.number, migration.sha256) != migration.sha256:
            raise Failure(
                "storage.migration_changed",
                f"migration {migration.name} is not the one that made this database",
                hint="a released migration is never edited: restore the file and add a new one",
            )


async def _apply(database: Database, schema: str, migration: Migration) -> None:
    async with database.transaction() as connection:
        await _lock(connection)
        done = await connection.execute(
            sql.SQL("SELECT 1 FROM {}.schema_migration WHERE number = %(number)s").format(sql.Identifier(schema)),
            {"number": migration.number},
        )
        if await done.fetchone():
            return  # another process was faster
        # Encoded, because the text comes from our own release and not from a literal in the code.
        await connection.execute(migration.text.encode())
        await connection.execute(
            sql.SQL(
                "INSERT INTO {}.schema_migration (number, name, sha256) VALUES (%(number)s, %(name)s, %(sha256)s)"
            ).format(sql.Identifier(schema)),
            {"number": migration.number, "name": migration.name, "sha256": migration.sha256},
        )


async def wait_closed(database: Database) -> None:
    """Close `database`, ignoring that PostgreSQL itself may be gone already."""
    with suppress(psycopg.Error, TimeoutError):
        await database.close()
