"""The migration runner on a real database: fresh, repeated, concurrent, changed, newer, without pgvector."""

import asyncio
import dataclasses

import pytest

from controller.process import MIGRATIONS, SCHEMA
from core.errors import Failure
from core.infra import postgres
from core.infra.postgres import Database, Migration
from tests.postgres import Server

ALL = postgres.load_migrations(MIGRATIONS)


async def opened(url: str) -> Database:
    database = Database(url, name="test")
    await database.open()
    return database


async def test_a_fresh_database_is_migrated_once_even_by_two_processes(empty_url: str) -> None:
    one, other = await opened(empty_url), await opened(empty_url)
    try:
        assert await asyncio.gather(postgres.migrate(one, SCHEMA, ALL), postgres.migrate(other, SCHEMA, ALL)) == [
            len(ALL),
            len(ALL),
        ]
        assert await postgres.migrate(one, SCHEMA, ALL) == len(ALL)
        async with one.connection() as connection:
            cursor = await connection.execute("SELECT count(*) FROM controller.schema_migration")
            assert await cursor.fetchone() == (len(ALL),)
    finally:
        await one.close()
        await other.close()


async def test_a_changed_migration_is_refused(url: str) -> None:
    database = await opened(url)
    changed = (dataclasses.replace(ALL[0], sha256="0" * 64), *ALL[1:])
    with pytest.raises(Failure) as caught:
        await postgres.migrate(database, SCHEMA, changed)
    await database.close()
    assert caught.value.code == "storage.migration_changed"


async def test_a_newer_schema_is_refused(url: str) -> None:
    database = await opened(url)
    newer = Migration(number=len(ALL) + 1, name="next", text="SELECT 1", sha256="1" * 64)
    await postgres.migrate(database, SCHEMA, (*ALL, newer))
    with pytest.raises(Failure) as caught:
        await postgres.migrate(database, SCHEMA, ALL)
    await database.close()
    assert caught.value.code == "storage.schema_newer"


async def test_a_failing_migration_leaves_nothing_behind(url: str) -> None:
    database = await opened(url)
    broken = Migration(
        number=len(ALL) + 1, name="broken", text="CREATE TABLE controller.half (x int); SELECT 1/0", sha256="2" * 64
    )
    with pytest.raises(Exception, match="division by zero"):
        await postgres.migrate(database, SCHEMA, (*ALL, broken))
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT to_regclass('controller.half')")
        assert await cursor.fetchone() == (None,)
    await database.close()


async def test_a_database_that_does_not_answer_is_unavailable() -> None:
    database = Database("postgresql://x@/x?host=/nonexistent", name="test", acquire_timeout_s=0.3)
    await database.open()
    with pytest.raises(Failure) as caught:
        async with database.transaction():
            pass
    await database.close()
    assert (caught.value.code, caught.value.retry_after_s) == ("storage.unavailable", 2.0)


async def test_a_user_who_may_not_create_the_extension_is_told_what_to_do(server: Server, empty_url: str) -> None:
    owner = await opened(empty_url)
    async with owner.connection() as connection:
        await connection.execute("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    await owner.close()
    database = await opened(empty_url.replace("slice@", "plain@"))
    with pytest.raises(Failure) as caught:
        await postgres.migrate(database, SCHEMA, ALL)
    await database.close()
    assert caught.value.code == "storage.extension_missing"
