"""Events on a real database: in the order of commits, gone with what is rolled back, and in nobody's way."""

import asyncio

import psycopg
import pytest

from controller.ledger.service import Bell, Ledger
from core.errors import Failure
from core.events import Happening, Subject
from core.infra import postgres


@pytest.fixture
def ledger(database: postgres.Database) -> Ledger:
    return Ledger(database, Bell())


def happening(kind: str) -> Happening:
    return Happening(kind=kind, subject_kind=Subject.MODEL, subject="m", message=kind)


async def hold(connection: postgres.Connection, row: int) -> None:
    """Hold a lock until the transaction ends, as one of a row is."""
    await connection.execute("SELECT pg_advisory_xact_lock(%(row)s)", {"row": row})


async def test_events_stand_in_the_order_of_commits_each_transactions_in_its_own(
    database: postgres.Database, ledger: Ledger
) -> None:
    async with database.transaction() as slow:
        await ledger.record(slow, happening("slow_1"), happening("slow_2"))
        async with database.transaction() as quick:
            await ledger.record(quick, happening("quick"))
        seen = await ledger.page(0, 10)
        assert [event.kind for event in seen] == ["quick"]
        await ledger.record(slow, happening("slow_3"))
    later = await ledger.page(seen[0].seq, 10)
    assert [event.kind for event in later] == ["slow_1", "slow_2", "slow_3"]


async def test_events_vanish_with_the_part_that_was_rolled_back(database: postgres.Database, ledger: Ledger) -> None:
    async with database.transaction() as connection:
        await ledger.record(connection, happening("kept"))
        async with connection.transaction() as inner:
            await ledger.record(connection, happening("gone"))
            raise psycopg.Rollback(inner)
    assert [event.kind for event in await ledger.page(0, 10)] == ["kept"]


async def test_who_recorded_first_may_still_wait_for_a_row_whose_holder_records(
    database: postgres.Database, ledger: Ledger
) -> None:
    has_recorded, is_held = asyncio.Event(), asyncio.Event()

    async def many() -> None:
        async with database.transaction() as connection:
            await ledger.record(connection, happening("many"))
            has_recorded.set()
            await is_held.wait()
            await hold(connection, 1)

    async def single() -> None:
        await has_recorded.wait()
        async with database.transaction() as connection:
            await hold(connection, 1)
            is_held.set()
            await ledger.record(connection, happening("single"))

    await asyncio.gather(many(), single())
    assert [event.kind for event in await ledger.page(0, 10)] == ["single", "many"]


async def test_what_was_ended_for_a_deadlock_is_done_once_more(database: postgres.Database) -> None:
    tries = {1: 0, 2: 0}
    both = asyncio.Barrier(2)

    async def crossing(first: int, second: int) -> None:
        async with database.transaction() as connection:
            tries[first] += 1
            await hold(connection, first)
            if tries[first] == 1:
                await both.wait()
            await hold(connection, second)

    await asyncio.gather(
        postgres.repeated(lambda: crossing(1, 2)),
        postgres.repeated(lambda: crossing(2, 1)),
    )
    assert sorted(tries.values()) == [1, 2]


async def test_another_failure_is_not_tried_again() -> None:
    tries = []

    async def failing() -> None:
        tries.append(1)
        raise Failure("storage.unavailable", "away")

    with pytest.raises(Failure):
        await postgres.repeated(failing)
    assert len(tries) == 1
