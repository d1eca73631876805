"""Engine installations: what operators want where, the default version, and moving deployments between versions.

Comes in: wishes from the admin API, engine facts from the reconcile loop. Goes out: rows that desired sets are made
of, events, wake-ups. It installs nothing: nodes do, when they hear of it; those that are offline hear of it later.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from adapters import floors, registry
from adapters.contract import Adapter, Adoptable
from controller.engines import store
from controller.engines.choosing import (
    EngineVersions,
    check_installable,
    checked_version,
    chosen_nodes,
    in_use,
    is_program,
    is_ready,
)
from controller.engines.model import EngineDefault, EngineWant, InstallWish, Moving, NodeInstall, NodeName
from controller.exchange import EngineFact, EngineInstall
from core.addresses import loopback_url
from core.errors import Failure
from core.events import Happening, Subject
from core.ids import NodeId
from core.infra import postgres
from core.ports import EventLog, Wakeups
from core.versions import newest_first


class Deploying(Protocol):
    """Who moves deployments to another version of their engine; the controller's deployments implement it."""

    async def run_engine_version(
        self,
        connection: postgres.Connection,
        engine: str,
        version: str,
        *,
        instead_of: frozenset[str],
        names: Sequence[str] | None,
    ) -> tuple[str, ...]:
        """Let deployments run `version`: those called `names`, or all that run one of `instead_of`; return them.

        Raises:
            Failure: `deployment.not_found`, `request.invalid_field` for one of another engine.
        """


class LiveEngines(Protocol):
    """What nodes say now; the controller's fleet implements it."""

    def engines(self) -> Mapping[NodeId, tuple[EngineFact, ...]]:
        """Return what each node said of its engines in this reign; a node that has not is left out."""


class EngineInstallations:
    """The one owner of wishes for engines and of their defaults."""

    def __init__(
        self,
        *,
        database: postgres.Database,
        versions: EngineVersions,
        deployments: Deploying,
        live: LiveEngines,
        events: EventLog[postgres.Connection],
        wakeups: Wakeups,
        adapter: Callable[[str], Adapter] = registry.adapter,
    ) -> None:
        self._database = database
        self._versions = versions
        self._deployments = deployments
        self._live = live
        self._events = events
        self._wakeups = wakeups
        self._adapter = adapter

    async def install(self, name: str, wish: InstallWish) -> str:
        """Want a version of an engine on one node or on all that there are; return which version that is.

        Raises:
            Failure: `engine.unknown`, `engine.version_unknown`, `engine.below_floor`, `source.*`, `node.not_found`,
                `request.invalid_field`, `storage.unavailable`.
        """
        adapter = self._adapter(name)
        check_installable(adapter)
        async with self._database.transaction() as connection:
            nodes = chosen_nodes(await store.nodes(connection), wish.node)
            version = await self._checked(connection, adapter, wish)
            for node in nodes:
                await self._want(connection, node, name, version, wish.source)
            await self._record(connection, "engine_wanted", name, f"{name} {version} is wanted on {_named(nodes)}")
        self._wakeups.wake("engine_wanted")
        return version

    async def remove(self, name: str, version: str, node: str | None, *, force: bool = False) -> None:
        """Want a version of an engine off one node, or off all that have it.

        `force` removes what new deployments get and what deployments without replicas name, never what runs.

        Raises:
            Failure: `engine.unknown`, `node.not_found`, `engine.not_installed`, `engine.in_use`, `storage.unavailable`.
        """
        adapter = self._adapter(name)
        async with self._database.transaction() as connection:
            await store.one_at_a_time(connection, name)
            nodes = chosen_nodes(await store.nodes(connection), node)
            holders = await self._holders(connection, name, version, nodes)
            await self._check_unused(connection, adapter, version, holders, force=force)
            for one in holders:
                row = EngineWant(
                    node_id=one.node_id, engine=name, version=version, source="", is_removed=True, adopt_url=""
                )
                await store.want(connection, row)
            await self._record(connection, "engine_unwanted", name, f"{name} {version} goes from {_named(holders)}")
        self._wakeups.wake("engine_unwanted")

    async def _check_unused(
        self,
        connection: postgres.Connection,
        adapter: Adapter,
        version: str,
        holders: Sequence[NodeName],
        *,
        force: bool,
    ) -> None:
        ids = {one.node_id for one in holders}
        running = {
            use.deployment
            for use in await store.uses(connection, adapter.name)
            if use.engine_version in (version, "") and use.node_id in ids
        }
        pins = await store.pins(connection, adapter.name, version, [one.name for one in holders])
        is_default = version == await self._versions.default(connection, adapter)
        failure = in_use(f"{adapter.name} {version}", sorted(running), pins, is_default=is_default)
        if failure is not None and (running or not force):
            raise failure

    async def _holders(
        self, connection: postgres.Connection, name: str, version: str, nodes: Sequence[NodeName]
    ) -> tuple[NodeName, ...]:
        """Return those of `nodes` that have a version, or are to have it."""
        reported = [one for one in await self._installs(connection, name) if one.version == version]
        wanted = {row.node_id for row in await store.wants(connection) if (row.engine, row.version) == (name, version)}
        ours = wanted | {one.node_id for one in reported if one.size_bytes or not is_ready(one.state)}
        holders = tuple(node for node in nodes if node.node_id in ours)
        if holders:
            return holders
        stranger = next((one for one in reported if one.node_id in {node.node_id for node in nodes}), None)
        if stranger is not None:
            raise Failure(
                "engine.not_installed",
                f"{name} {version} on {stranger.node_name} was not installed by Slice: it was {stranger.message}",
                hint="whoever put it there removes it",
            )
        raise Failure(
            "engine.not_installed", f"{name} {version} is not on {_named(nodes)}", hint=f"`slice engine show {name}`"
        )

    async def upgrade(self, name: str, wish: InstallWish, moving: Moving) -> tuple[str, tuple[str, ...]]:
        """Make a version the default, install it where the engine is, and move deployments to it.

        Returns the version and the names of the deployments that were moved; each gets new replicas beside its old
        ones, as after a change of settings.

        Raises:
            Failure: as for `install`, and `deployment.not_found`.
        """
        adapter = self._adapter(name)
        check_installable(adapter)
        async with self._database.transaction() as connection:
            await store.one_at_a_time(connection, name)
            version = await self._checked(connection, adapter, wish)
            old = await self._old_default(connection, adapter)
            await self._want_where_needed(connection, name, version, wish)
            moved = await self._moved(connection, name, version, old=old, moving=moving)
            # Asked for twice, it does not become what a rollback returns to.
            before = await store.default(connection, name)
            previous = old if old != version else before.previous if before else ""
            await store.set_default(connection, EngineDefault(engine=name, version=version, previous=previous))
            message = f"new deployments of {name} get {version}; moved: {', '.join(moved) or 'none'}"
            await self._record(connection, "engine_upgraded", name, message, version=version, previous=old)
        self._wakeups.wake("engine_upgraded")
        return version, moved

    async def rollback(self, name: str, moving: Moving, *, accept_risk: bool) -> tuple[str, tuple[str, ...]]:
        """Return to the default before the last upgrade, and move deployments back likewise.

        Raises:
            Failure: `engine.unknown`, `engine.version_unknown`, `engine.below_floor`, `deployment.not_found`,
                `storage.unavailable`.
        """
        adapter = self._adapter(name)
        async with self._database.transaction() as connection:
            await store.one_at_a_time(connection, name)
            row = await store.default(connection, name)
            if row is None or not row.previous:
                raise Failure(
                    "engine.version_unknown",
                    f"there is no earlier default of {name} to return to",
                    hint=f"`slice engine upgrade {name}@VERSION` chooses any",
                )
            if not accept_risk:
                floors.check_floor(adapter, row.previous)
            await self._want_where_needed(connection, name, row.previous, InstallWish(version=row.previous))
            await store.set_default(connection, EngineDefault(engine=name, version=row.previous, previous=row.version))
            moved = await self._moved(connection, name, row.previous, old=row.version, moving=moving)
            message = f"{name} is back at {row.previous}; moved: {', '.join(moved) or 'none'}"
            await self._record(
                connection, "engine_rolled_back", name, message, version=row.previous, previous=row.version
            )
        self._wakeups.wake("engine_rolled_back")
        return row.previous, moved

    async def _moved(
        self, connection: postgres.Connection, name: str, version: str, *, old: str, moving: Moving
    ) -> tuple[str, ...]:
        # "" is what deployments of a program have that pinned nothing while there was no default.
        return await self._deployments.run_engine_version(
            connection, name, version, instead_of=frozenset({old, ""}), names=moving.names
        )

    async def _checked(self, connection: postgres.Connection, adapter: Adapter, wish: InstallWish) -> str:
        here = {one.version for one in await self._installs(connection, adapter.name) if is_ready(one.state)}
        return checked_version(adapter, wish, await self._versions.default(connection, adapter), here)

    async def _installs(self, connection: postgres.Connection, name: str) -> list[NodeInstall]:
        """Return the installs of an engine as nodes report them now; a row is older by up to a pass of the loop."""
        live = self._live.engines()
        found = [one for one in await store.installs(connection, name) if NodeId(one.node_id) not in live]
        for node in await store.nodes(connection):
            for fact in live.get(NodeId(node.node_id), ()):
                if fact.engine == name:
                    found += [_node_install(node, name, install) for install in fact.installs]
        return found

    async def _old_default(self, connection: postgres.Connection, adapter: Adapter) -> str:
        """Return the default; of a program without one, the newest that nodes have now."""
        old = await self._versions.default(connection, adapter)
        if old or not is_program(adapter):
            return old
        here = [one.version for one in await self._installs(connection, adapter.name) if is_ready(one.state)]
        return newest_first(version for version in here if version)[0] if any(here) else ""

    async def _want_where_needed(
        self, connection: postgres.Connection, name: str, version: str, wish: InstallWish
    ) -> None:
        """Want `version` on the node that is named, else on those that have the engine or run it; else nowhere yet.

        It is to go from nowhere any more: a node that was away may not have heard that it should.
        """
        await store.keep(connection, name, version)
        nodes = chosen_nodes(await store.nodes(connection), wish.node)
        needing = {one.node_id for one in await self._installs(connection, name)}
        needing |= {use.node_id for use in await store.uses(connection, name)}
        needing |= {row.node_id for row in await store.wants(connection) if row.engine == name and not row.adopt_url}
        for node in nodes:
            # A program that nobody brings is there already, or the check had failed.
            if (wish.node is not None or node.node_id in needing) and (
                wish.source or not is_program(self._adapter(name))
            ):
                await self._want(connection, node, name, version, wish.source)

    async def adopt(self, name: str, node: str | None, url: str) -> str:
        """Let a node read the engine that runs at its loopback address `url`; return the node's name.

        Raises:
            Failure: `engine.unknown`, `engine.runtime_unsupported`, `request.invalid_field`, `node.not_found`,
                `storage.unavailable`.
        """
        adapter = self._adapter(name)
        if not isinstance(adapter, Adoptable):
            raise Failure(
                "engine.runtime_unsupported",
                f"a running {name} cannot be adopted",
                hint="any OpenAI-compatible endpoint can be served with the engine 'openai'",
                param="name",
            )
        address = loopback_url(url)
        async with self._database.transaction() as connection:
            one = self._only(chosen_nodes(await store.nodes(connection), node))
            row = EngineWant(
                node_id=one.node_id, engine=name, version="", source="", is_removed=False, adopt_url=address
            )
            await store.want(connection, row)
            await self._record(connection, "engine_adopted", name, f"{name} at {address} of {one.name} is adopted")
        self._wakeups.wake("engine_adopted")
        return one.name

    async def disown(self, name: str, node: str | None) -> None:
        """End an adoption; the engine runs on, its models stay registered and cannot be served from it any more.

        Raises:
            Failure: `engine.unknown`, `node.not_found`, `engine.not_installed`, `storage.unavailable`.
        """
        self._adapter(name)
        async with self._database.transaction() as connection:
            nodes = chosen_nodes(await store.nodes(connection), node)
            ended = [one for one in nodes if await store.end_adoption(connection, one.node_id, name)]
            if not ended:
                raise Failure("engine.not_installed", f"no running {name} is adopted on {_named(nodes)}")
            message = f"{name} of {_named(ended)} is not adopted any more"
            await self._record(connection, "engine_disowned", name, message)
        self._wakeups.wake("engine_disowned")

    @staticmethod
    def _only(nodes: Sequence[NodeName]) -> NodeName:
        if len(nodes) > 1:
            raise Failure(
                "request.invalid_field",
                "several nodes could be meant",
                hint=f"say which: --node {' or '.join(node.name for node in nodes[:5])}",
                param="node",
            )
        return nodes[0]

    async def absorb(self, connection: postgres.Connection, node_id: str, facts: Sequence[EngineFact]) -> None:
        """Forget the removals that a node has carried out; `facts` are all that it reports."""
        reported = [f"{fact.engine}@{install.version}" for fact in facts for install in fact.installs]
        await store.forget_gone(connection, node_id, reported)

    async def _want(
        self, connection: postgres.Connection, node: NodeName, name: str, version: str, source: str
    ) -> None:
        row = EngineWant(
            node_id=node.node_id, engine=name, version=version, source=source, is_removed=False, adopt_url=""
        )
        await store.want(connection, row)

    async def _record(
        self, connection: postgres.Connection, kind: str, name: str, message: str, **data: object
    ) -> None:
        happening = Happening(kind=kind, subject_kind=Subject.ENGINE, subject=name, message=message, data=data)
        await self._events.record(connection, happening)


def _node_install(node: NodeName, engine: str, install: EngineInstall) -> NodeInstall:
    return NodeInstall(
        node_id=node.node_id,
        node_name=node.name,
        engine=engine,
        version=install.version,
        state=install.state.value,
        message=install.message,
        size_bytes=install.size_bytes,
    )


def _named(nodes: Sequence[NodeName]) -> str:
    return f"node {nodes[0].name}" if len(nodes) == 1 else f"{len(nodes)} nodes"
