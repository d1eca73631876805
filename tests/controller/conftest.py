"""Fixtures of the controller's tests: a real PostgreSQL, and whole controllers on real sockets in this process."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from controller.process import MIGRATIONS, SCHEMA
from core.infra import postgres
from tests.controller.cluster import Cluster
from tests.postgres import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """A database with the schema in it, which every test's own one is copied from."""
    name = server.fresh()

    async def prepare() -> None:
        database = postgres.Database(server.url(name), name="template")
        await database.open()
        await postgres.migrate(database, SCHEMA, postgres.load_migrations(MIGRATIONS))
        await database.close()

    asyncio.run(prepare())
    return name


@pytest.fixture
def empty_url(server: Server) -> Iterator[str]:
    name = server.fresh()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def url(server: Server, template: str) -> Iterator[str]:
    name = server.fresh(template)
    yield server.url(name)
    server.drop(name)


@pytest.fixture
async def database(url: str) -> AsyncIterator[postgres.Database]:
    opened = postgres.Database(url, name="test")
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A short directory for sockets."""
    with tempfile.TemporaryDirectory(prefix="slct", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
async def cluster(url: str, runtime: Path) -> AsyncIterator[Cluster]:
    """A running controller and a client of its admin API."""
    async with Cluster(url, runtime) as running:
        await running.ready()
        yield running


@pytest.fixture(scope="module")
def module_url(server: Server, template: str) -> Iterator[str]:
    name = server.fresh(template)
    yield server.url(name)
    server.drop(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(module_url: str) -> AsyncIterator[Cluster]:
    """One controller for a whole module's calls that change nothing."""
    with tempfile.TemporaryDirectory(prefix="slct", dir="/tmp") as folder:
        async with Cluster(module_url, Path(folder)) as running:
            await running.ready()
            yield running
