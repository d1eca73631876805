"""Which version of an engine is meant, and whether it may be installed: pure, but for the lookups of `EngineVersions`.

Comes in: an adapter, what an operator or a deployment asks for. Goes out: a version, or a `Failure` that lists those
that exist. Called by `controller.engines.service`, and by the deployments through their Protocol.
"""

from collections.abc import Iterable, Sequence

from adapters import floors
from adapters.contract import Adapter
from controller.engines import store
from controller.engines.model import InstallWish, NodeName, Pin
from core.errors import Failure
from core.infra import postgres
from core.names import did_you_mean
from core.sources import SourceKind, parse_source
from core.states import InstallState
from core.versions import newest_first


class EngineVersions:
    """What a deployment that is made now runs."""

    async def chosen(self, connection: postgres.Connection, adapter: Adapter, asked: str | None) -> str:
        """Return the version that a deployment gets which asks for `asked` (None: the default).

        "" means the newest program of the engine on the node.

        Raises:
            Failure: `engine.below_floor`, unless an operator has accepted that version's risk by installing it.
        """
        version = asked if asked is not None else await self.default(connection, adapter)
        if asked is not None and not await store.is_wanted(connection, adapter.name, asked):
            floors.check_floor(adapter, asked)
        return version

    async def default(self, connection: postgres.Connection, adapter: Adapter) -> str:
        """Return the version that deployments of an engine get when they pin none."""
        row = await store.default(connection, adapter.name)
        if row is not None:
            return row.version
        return "" if is_program(adapter) else adapter.default_version


def is_program(adapter: Adapter) -> bool:
    """Return whether the engine is a program of its own, no Python package."""
    return adapter.install_plan(adapter.default_version).binary is not None


def check_installable(adapter: Adapter) -> None:
    """Check that there is anything to install.

    Raises:
        Failure: `request.invalid_field`.
    """
    plan = adapter.install_plan(adapter.default_version)
    if plan.binary is None and not plan.requirements:
        raise Failure("request.invalid_field", f"{adapter.name} needs no installation", param="name")


def checked_version(adapter: Adapter, wish: InstallWish, default: str, here: Iterable[str]) -> str:
    """Return the version to install; `here` are those that nodes have.

    1. A program of its own says which version it is, so any version may be given a source.
    2. A package's version is one that this release knows, one that is installed, or insisted on.

    Raises:
        Failure: `engine.version_unknown`, `engine.below_floor`, `source.*`.
    """
    version = wish.version or default or adapter.default_version
    known = newest_first((*adapter.versions, *here))
    has_it = version in known
    if is_program(adapter):
        _check_source(adapter, wish, version, is_here=version in set(here))
        has_it = True
    elif wish.source:
        raise Failure(
            "source.unsupported",
            f"{adapter.name} comes from the package index or the directory of wheels",
            hint="leave --from out; the setting wheel_dir names a directory of wheels",
            param="source",
        )
    if not has_it and not wish.allow_unlisted:
        raise Failure(
            "engine.version_unknown",
            f"{adapter.name} {version} is not a version that this release knows.{did_you_mean(version, known)}",
            hint=f"there are: {', '.join(known)}; --allow-unlisted installs another without pinned digests",
            param="version",
        )
    if not wish.accept_risk:
        floors.check_floor(adapter, version)
    return version


def _check_source(adapter: Adapter, wish: InstallWish, version: str, *, is_here: bool) -> None:
    if not wish.source:
        if is_here:
            return
        raise Failure(
            "source.invalid",
            f"{adapter.name} is a program of its own: say where {version} comes from",
            hint="--from file:/path/on/the/node, or --from https://HOST/PATH#file=SHA256",
            param="source",
        )
    source = parse_source(wish.source)
    if source.kind not in (SourceKind.FILE, SourceKind.HTTPS):
        raise Failure(
            "source.unsupported",
            "an engine comes from a file of the node or over https",
            hint="--from file:/path/on/the/node, or --from https://HOST/PATH#file=SHA256",
            param="source",
        )
    if source.kind is SourceKind.HTTPS and source.file_sha256 is None:
        raise Failure(
            "source.invalid",
            "a program from the network is only taken with its digest",
            hint=f"append #file=SHA256, as the makers of {adapter.name} publish it",
            param="source",
        )


def chosen_nodes(nodes: Sequence[NodeName], name: str | None) -> tuple[NodeName, ...]:
    """Return the node called `name`, or all of them.

    Raises:
        Failure: `node.not_found`.
    """
    if name is None:
        if not nodes:
            raise Failure("node.not_found", "no node has joined this cluster", hint="`slice up` starts one")
        return tuple(nodes)
    for node in nodes:
        if name in (node.name, node.node_id):
            return (node,)
    raise Failure(
        "node.not_found",
        f"there is no node {name!r}.{did_you_mean(name, [node.name for node in nodes])}",
        hint="`slice node list` shows all",
        param="node",
    )


def in_use(what: str, running: Sequence[str], pins: Sequence[Pin], *, is_default: bool) -> Failure | None:
    """Return the failure of removing a version of an engine (`what`) that something needs; it names all that does.

    `running` are deployments with a replica of it, which no force stops.
    """
    words = []
    if running:
        words.append(f"runs for {', '.join(running)}")
    if pins:
        names = ", ".join(pin.deployment if pin.is_enabled else f"{pin.deployment} (disabled)" for pin in pins)
        words.append(f"is pinned by {names}")
    if is_default:
        words.append("is the version that new deployments get")
    if not words:
        return None
    other = f"`slice engine upgrade {what.split()[0]}@OTHER`"
    return Failure(
        "engine.in_use",
        f"{what} {', and '.join(words)}",
        hint=f"{other} or `slice undeploy` first" if running else f"{other} chooses another version, or use --force",
    )


def is_ready(state: str) -> bool:
    """Return whether an install's state says that it can be used."""
    return state == InstallState.READY.value
