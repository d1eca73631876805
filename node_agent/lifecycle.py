"""What can happen to a replica and what its owner is told to do: the alphabet of `node_agent.replica`.

Values only. Made by `node_agent.runner` (events) and by the machine (effects).
"""

from dataclasses import dataclass

from core.errors import Failure

# -- what can happen ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The replica is to run: the first event of a new one."""


@dataclass(frozen=True, kw_only=True)
class FilesReady:
    """Every file of the version is in the store."""


@dataclass(frozen=True, kw_only=True)
class EngineReady:
    """The engine's environment is installed."""


@dataclass(frozen=True, kw_only=True)
class PreparationFailed:
    """Files, engine or spawn could not be had; `failure.retry` says whether trying again helps."""

    failure: Failure
    chance: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Spawned:
    """A shim runs the engine as `incarnation`."""

    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """An engine of an earlier life of the node agent was found running; `age_s` seconds since its spawn."""

    incarnation: int
    age_s: float
    load_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ProbePassed:
    """The engine answered its health probe."""


@dataclass(frozen=True, kw_only=True)
class ProbeFailed:
    """The engine did not answer, or answered otherwise than ready."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Exited:
    """The engine's leader is gone, and with it its whole tree. `chance` is drawn by the caller, 0 to 1;
    `out_of_memory` is `cgroup`, `host` or "".
    """

    exit_code: int | None = None
    exit_signal: int | None = None
    reason: str = ""
    log_tail: tuple[str, ...] = ()
    is_port_taken: bool = False
    out_of_memory: str = ""
    chance: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TimeCame:
    """`wake_at` has passed."""


@dataclass(frozen=True, kw_only=True)
class StopAsked:
    """The replica is to end."""


@dataclass(frozen=True, kw_only=True)
class TreeGone:
    """Nothing of the engine is left after a stop."""


Happened = (
    Wanted
    | FilesReady
    | EngineReady
    | PreparationFailed
    | Spawned
    | Adopted
    | ProbePassed
    | ProbeFailed
    | Exited
    | TimeCame
    | StopAsked
    | TreeGone
)


# -- what to do --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FetchFiles:
    """Bring the files into the store, then say `FilesReady` or `PreparationFailed`."""


@dataclass(frozen=True, kw_only=True)
class InstallEngine:
    """Make the engine's environment, then say `EngineReady` or `PreparationFailed`."""


@dataclass(frozen=True, kw_only=True)
class Spawn:
    """Start the engine as `incarnation` or a higher one, then say `Spawned` or `PreparationFailed`."""

    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Probe and measure the engine and wait for its exit."""


@dataclass(frozen=True, kw_only=True)
class EndEngine:
    """End an engine that hangs, at once; its `Exited` follows."""


@dataclass(frozen=True, kw_only=True)
class StopEngine:
    """End the engine on the controller's word, then say `TreeGone`."""

    grace_s: float


@dataclass(frozen=True, kw_only=True)
class Abandon:
    """Cancel fetching and installing."""


Effect = FetchFiles | InstallEngine | Spawn | Watch | EndEngine | StopEngine | Abandon
