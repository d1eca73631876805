"""Engine installations on a real database, with engines made for the test: programs, floors, adoption."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.contract import Adopted, Binary, InstallPlan, Runtime
from adapters.fake.adapter import Fake
from controller.engines import store
from controller.engines.choosing import EngineVersions
from controller.engines.model import InstallWish, Moving
from controller.engines.service import EngineInstallations
from controller.exchange import EngineFact, EngineInstall
from controller.fleet import store as fleet_store
from controller.ledger.service import Bell, Ledger
from controller.registry.adopted import model_names
from core.errors import Failure
from core.ids import NodeId
from core.infra import postgres
from core.names import NAME_PATTERN
from core.states import InstallState
from tests.controller.test_stores import hello


class Demo(Fake):
    """A program of its own, with a floor, that can be adopted."""

    @property
    def name(self) -> str:
        return "demo"

    @property
    def default_version(self) -> str:
        return "2.0"

    @property
    def versions(self) -> tuple[str, ...]:
        return ("2.0", "1.0")

    @property
    def formats(self) -> frozenset[str]:
        return frozenset({"gguf", "demo"})

    @property
    def runtimes(self) -> frozenset[Runtime]:
        return frozenset({Runtime.PROCESS, Runtime.EXTERNAL})

    @property
    def floor(self) -> tuple[str, str]:
        return ("1.5", "CVE-2026-0001")

    @property
    def adoption_paths(self) -> tuple[str, str]:
        return "/version", "/models"

    def adopted(self, version_body: bytes, models_body: bytes) -> Adopted:
        raise NotImplementedError

    def install_plan(self, version: str) -> InstallPlan:
        return InstallPlan(requirements=(), binary=Binary(executable="demoserve"))


class Package(Demo):
    def install_plan(self, version: str) -> InstallPlan:
        return InstallPlan(requirements=(f"demo=={version}",))


class Nobody:
    """Has no deployments."""

    async def run_engine_version(self, *_: Any, **__: Any) -> tuple[str, ...]:
        return ()


class Silent:
    """No node has said anything in this reign: what their rows hold is all that is known."""

    def engines(self) -> dict[NodeId, tuple[EngineFact, ...]]:
        return {}


class Quiet:
    def wake(self, reason: str) -> None:
        return


Make = Callable[[Demo], EngineInstallations]


@pytest.fixture
async def make(database: postgres.Database) -> Make:
    async with database.transaction() as connection:
        await fleet_store.upsert(connection, hello())
        await fleet_store.upsert(
            connection,
            replace(hello(), node_id="nod_2", node_name="other", machine_id="m2"),  # type: ignore[arg-type]
        )
    return lambda adapter: EngineInstallations(
        database=database,
        versions=EngineVersions(),
        deployments=Nobody(),
        live=Silent(),
        events=Ledger(database, Bell()),
        wakeups=Quiet(),
        adapter=lambda name: adapter,
    )


async def wants(database: postgres.Database) -> set[tuple[str, str, str, bool]]:
    async with database.connection() as connection:
        return {(row.node_id, row.version, row.source, row.is_removed) for row in await store.wants(connection)}


async def report(database: postgres.Database, node_id: str, *versions: str) -> tuple[EngineFact, ...]:
    facts = (
        EngineFact(
            engine="demo",
            is_usable=True,
            reason="",
            device_kinds=("cpu",),
            installed_versions=versions,
            installs=tuple(EngineInstall(version=one, state=InstallState.READY, size_bytes=1) for one in versions),
        ),
    )
    async with database.transaction() as connection:
        await fleet_store.set_engines(connection, node_id, facts)
    return facts


def code(caught: pytest.ExceptionInfo[Failure]) -> str:
    return caught.value.code


async def test_a_program_goes_to_all_nodes_or_to_one_with_its_source(make: Make, database: postgres.Database) -> None:
    engines = make(Demo())
    assert await engines.install("demo", InstallWish(version="2.0", source="file:/opt/demo")) == "2.0"
    await engines.install("demo", InstallWish(version="7.0", node="other", source="file:/opt/demo7"))
    assert await wants(database) == {
        ("nod_1", "2.0", "file:/opt/demo", False),
        ("nod_2", "2.0", "file:/opt/demo", False),
        ("nod_2", "7.0", "file:/opt/demo7", False),
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "source.invalid"),
        ("https://example.org/demo.tgz", "source.invalid"),
        ("hf:org/name", "source.unsupported"),
        ("ftp://x", "source.unsupported"),
    ],
)
async def test_a_program_without_a_verified_source_is_refused(
    make: Make, database: postgres.Database, source: str, expected: str
) -> None:
    with pytest.raises(Failure) as caught:
        await make(Demo()).install("demo", InstallWish(version="2.0", source=source))
    assert code(caught) == expected
    assert await wants(database) == set()


@pytest.mark.parametrize("adapter", [Demo(), Package()], ids=["program", "package"])
async def test_a_version_below_the_floor_is_refused_with_its_advisory_unless_insisted_on(
    make: Make, database: postgres.Database, adapter: Demo
) -> None:
    engines = make(adapter)
    source = "" if isinstance(adapter, Package) else "file:/opt/demo"
    with pytest.raises(Failure, match="CVE-2026-0001") as caught:
        await engines.install("demo", InstallWish(version="1.0", source=source))
    assert code(caught) == "engine.below_floor"
    assert "1.5" in caught.value.hint
    versions = EngineVersions()
    async with database.connection() as connection:
        with pytest.raises(Failure):
            await versions.chosen(connection, adapter, "1.0")
    await engines.install("demo", InstallWish(version="1.0", source=source, accept_risk=True))
    async with database.connection() as connection:
        assert await versions.chosen(connection, adapter, "1.0") == "1.0"


async def test_a_deployment_that_pins_nothing_gets_the_newest_program_or_the_chosen_default(
    make: Make, database: postgres.Database
) -> None:
    versions = EngineVersions()
    async with database.connection() as connection:
        assert await versions.chosen(connection, Demo(), None) == ""
        assert await versions.chosen(connection, Package(), None) == "2.0"
    await report(database, "nod_1", "2.0", "2.1")
    for _ in range(2):
        await make(Demo()).upgrade("demo", InstallWish(version="2.0"), Moving())
    async with database.connection() as connection:
        assert await versions.chosen(connection, Demo(), None) == "2.0"
        row = await store.default(connection, "demo")
    assert row is not None
    assert row.previous == "2.1", "the newest program that was there before"


async def test_an_upgrade_brings_the_version_to_the_nodes_that_have_the_engine(
    make: Make, database: postgres.Database
) -> None:
    await report(database, "nod_1", "1.9")
    await make(Package()).upgrade("demo", InstallWish(version="2.0"), Moving())
    assert await wants(database) == {("nod_1", "2.0", "", False)}


async def test_a_rollback_below_the_floor_is_refused(make: Make, database: postgres.Database) -> None:
    engines = make(Package())
    await engines.upgrade("demo", InstallWish(version="1.0", accept_risk=True), Moving())
    await engines.upgrade("demo", InstallWish(version="2.0"), Moving())
    with pytest.raises(Failure) as caught:
        await engines.rollback("demo", Moving(), accept_risk=False)
    assert code(caught) == "engine.below_floor"
    assert await engines.rollback("demo", Moving(), accept_risk=True) == ("1.0", ())


async def test_a_program_that_is_the_default_again_is_no_longer_to_go(make: Make, database: postgres.Database) -> None:
    engines = make(Demo())
    await report(database, "nod_1", "2.0", "3.0")
    await engines.upgrade("demo", InstallWish(version="2.0"), Moving())
    await engines.upgrade("demo", InstallWish(version="3.0"), Moving())
    await engines.remove("demo", "2.0", None)
    assert await wants(database) == {("nod_1", "2.0", "", True)}
    assert await engines.rollback("demo", Moving(), accept_risk=False) == ("2.0", ())
    assert await wants(database) == set(), "it lies there: nobody has to bring it"


async def test_a_removal_is_wanted_where_the_version_is_and_forgotten_when_it_is_not(
    make: Make, database: postgres.Database
) -> None:
    engines = make(Demo())
    facts = await report(database, "nod_1", "2.0")
    await engines.remove("demo", "2.0", None)
    assert await wants(database) == {("nod_1", "2.0", "", True)}
    async with database.transaction() as connection:
        await engines.absorb(connection, "nod_1", facts)
    assert await wants(database) == {("nod_1", "2.0", "", True)}
    async with database.transaction() as connection:
        await engines.absorb(connection, "nod_1", await report(database, "nod_1"))
    assert await wants(database) == set()


async def test_a_running_engine_is_adopted_on_one_node_by_its_loopback_address(
    make: Make, database: postgres.Database
) -> None:
    engines = make(Demo())
    for url in ("http://10.0.0.1:11434", "http://ollama:11434"):
        with pytest.raises(Failure) as caught:
            await engines.adopt("demo", "box", url)
        assert code(caught) == "request.invalid_field"
    with pytest.raises(Failure, match="several nodes"):
        await engines.adopt("demo", None, "http://127.0.0.1:11434")
    assert await engines.adopt("demo", "box", "http://127.0.0.1:11434/") == "box"
    async with database.connection() as connection:
        (row,) = await store.wants(connection)
    assert (row.node_id, row.version, row.adopt_url) == ("nod_1", "", "http://127.0.0.1:11434")
    with pytest.raises(Failure) as caught:
        await engines.disown("demo", "other")
    assert code(caught) == "engine.not_installed"
    await engines.disown("demo", "box")
    assert await wants(database) == set()


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("gemma4:latest", "gemma4"),
        ("llama3.2", "llama3.2"),
        ("Qwen2.5:0.5b", "qwen2.5-0.5b"),
        ("hf.co/Org/Name-GGUF:Q4_K_M", "hf.co-org-name-gguf-q4_k_m"),
        ("::", "model"),
        ("x" * 200, "x" * 63),
    ],
)
def test_an_adopted_name_becomes_one_that_may_be_typed(name: str, ours: str) -> None:
    names = list(model_names(name, "ollama", "box"))
    assert names[0] == ours
    assert all(NAME_PATTERN.match(one) for one in names)
    assert len(set(names)) == 3
