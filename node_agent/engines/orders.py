"""What is wanted of engines and how it stands, as values.

Made from protobuf by `node_agent.supervisor`, read back by `node_agent.inventory`; worked on by
`node_agent.engines.house` and `node_agent.engines.adoption`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from adapters.contract import AdoptedModel
from core.states import InstallState
from node_agent.engines.places import Key


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """One wish of an operator; with an `adopt_url` nothing is installed, what runs there is read."""

    engine: str
    version: str
    source: str = ""
    is_removed: bool = False
    adopt_url: str = ""

    @property
    def key(self) -> Key:
        """Engine and version."""
        return self.engine, self.version


@dataclass(frozen=True, kw_only=True)
class Install:
    """One version of an engine here, or on its way; `digest` is that of its lock or of the operator's file."""

    version: str
    state: InstallState
    code: str = ""
    message: str = ""
    digest: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Now:
    """What is done for one version at this moment, or what went wrong."""

    state: InstallState
    code: str = ""
    message: str = ""


def merged(key: Key, there: Install | None, now: Now | None, order: EngineOrder | None) -> Install | None:
    """Return one version as it is told: what is done with it, over what lies on the disk."""
    if now is None:
        if there is None and order is not None and not order.is_removed:
            return Install(version=key[1], state=InstallState.QUEUED)
        if there is not None and there.message and order is not None and order.is_removed:
            return replace(there, code="engine.not_installed", message=f"{there.message}: not ours to remove")
        return there
    if now.state is InstallState.QUEUED and there is not None and there.state is InstallState.READY:
        return there  # it serves until something is really done with it: after each start all orders wait in turn
    return Install(
        version=key[1],
        state=now.state,
        code=now.code,
        message=now.message,
        digest=there.digest if there else "",
        size_bytes=there.size_bytes if there else 0,
    )


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All installs by engine, and the absolute path of each program that an adapter asks for and that is here."""

    installs: Mapping[str, tuple[Install, ...]]
    executables: Mapping[str, str] = field(default_factory=dict)

    def ready(self, engine: str) -> tuple[str, ...]:
        """Return the versions of an engine that are ready."""
        return tuple(
            one.version for one in self.installs.get(engine, ()) if one.version and one.state is InstallState.READY
        )


@dataclass(frozen=True, kw_only=True)
class AdoptedNow:
    """An engine that somebody else runs, as it was read last; `message` says why it cannot be read now."""

    base_url: str
    version: str = ""
    models: tuple[AdoptedModel, ...] = ()
    message: str = ""
