"""States of replicas, nodes and pulls: constants, one sentence each, and the replica's table of transitions.

Pure. The node agent moves a replica through the table; the controller mirrors what the node reports and alone decides
`desired`. A transitional state names its target, so an operator always knows where a moving thing is going.
"""

from collections.abc import Mapping
from enum import StrEnum


class ReplicaState(StrEnum):
    """Where one running engine is in its life."""

    ASSIGNED = "assigned"  # placed on a node that has not begun yet
    FETCHING = "fetching"  # the node brings the model's files
    INSTALLING = "installing"  # the node installs the engine
    STARTING = "starting"  # the engine process lives but does not answer yet
    READY = "ready"  # the engine answers its health probe
    UNHEALTHY = "unhealthy"  # the engine lives but does not answer its probe; one that runs elsewhere may be gone
    STOPPING = "stopping"  # the engine has been told to end
    STOPPED = "stopped"  # the engine's whole process tree is gone
    BACKOFF = "backoff"  # the engine ended by itself and will be started again at a known time
    CRASH_LOOP = "crash_loop"  # the engine ended too often; it waits for an operator or a new generation
    FAILED = "failed"  # it cannot run on this node at all (bad file, refused settings, failed install)
    LOST = "lost"  # its node is silent past its lease; the engine may still run


class Desired(StrEnum):
    """What the controller wants of a replica."""

    RUN = "run"
    DRAIN = "drain"  # unrouted, its streams may finish
    STOP = "stop"


class NodeState(StrEnum):
    """What the controller knows of a machine."""

    READY = "ready"  # heartbeats arrive
    SUSPECT = "suspect"  # silent for 2H+2 seconds: no new replica, no new request
    LOST = "lost"  # silent for 4H+3 seconds: replacements may be placed
    OFFLINE = "offline"  # said goodbye


class PullState(StrEnum):
    """Where the download of a model is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How a request at the front door ended."""

    ANSWERED = "answered"  # the client got all of it
    REFUSED = "refused"  # the request, or what its key may do, was at fault: a status of 4xx
    FAILED = "failed"  # nothing could answer: a status of 5xx
    CUT = "cut"  # the answer broke off after its first byte
    GONE = "gone"  # the client left, or stopped reading


class InstallState(StrEnum):
    """Where one version of an engine is on one node."""

    QUEUED = "queued"
    INSTALLING = "installing"
    READY = "ready"
    FAILED = "failed"
    REMOVING = "removing"


class Stage(StrEnum):
    """How far a model's version has come; moved by an operator now, by RIA through Manicômio's gate later."""

    CANDIDATE = "candidate"
    STAGING = "staging"
    PRODUCTION = "production"
    RETIRED = "retired"


STAGE_MOVES: Mapping[Stage, frozenset[Stage]] = {
    Stage.CANDIDATE: frozenset({Stage.STAGING, Stage.RETIRED}),
    Stage.STAGING: frozenset({Stage.CANDIDATE, Stage.PRODUCTION, Stage.RETIRED}),
    Stage.PRODUCTION: frozenset({Stage.STAGING, Stage.RETIRED}),
    Stage.RETIRED: frozenset({Stage.CANDIDATE}),
}
"""Where a version may go from each stage: into production only from staging, out of retirement only to the start."""


def stage_path(start: Stage, end: Stage) -> tuple[Stage, ...]:
    """Return the shortest way from `start` to `end` by `STAGE_MOVES`, without `start`; empty when they are the same."""
    ways: dict[Stage, tuple[Stage, ...]] = {start: ()}
    queue = [start]
    while end not in ways:
        here = queue.pop(0)
        for there in sorted(STAGE_MOVES[here] - ways.keys()):
            ways[there] = (*ways[here], there)
            queue.append(there)
    return ways[end]


class DisabledAnswer(StrEnum):
    """What the front door answers for a deployment that is disabled."""

    NOT_FOUND = "not_found"  # as if it did not exist: 404
    UNAVAILABLE = "unavailable"  # 503


class Event(StrEnum):
    """What can happen to a replica on its node."""

    FETCH_BEGUN = "fetch_begun"
    INSTALL_BEGUN = "install_begun"
    SPAWNED = "spawned"
    PROBE_PASSED = "probe_passed"
    PROBE_FAILED = "probe_failed"
    EXITED = "exited"
    RETRY_DUE = "retry_due"
    GAVE_UP = "gave_up"
    REFUSED = "refused"
    STOP_ASKED = "stop_asked"
    TREE_GONE = "tree_gone"


_S, _E = ReplicaState, Event

TARGET: Mapping[ReplicaState, ReplicaState] = {
    _S.ASSIGNED: _S.READY,
    _S.FETCHING: _S.READY,
    _S.INSTALLING: _S.READY,
    _S.STARTING: _S.READY,
    _S.UNHEALTHY: _S.READY,
    _S.BACKOFF: _S.READY,
    _S.STOPPING: _S.STOPPED,
}
"""Where each moving state is going; a state that is absent here rests."""

REPLICA_TRANSITIONS: Mapping[tuple[ReplicaState, Event], ReplicaState] = {
    (_S.ASSIGNED, _E.FETCH_BEGUN): _S.FETCHING,
    (_S.ASSIGNED, _E.INSTALL_BEGUN): _S.INSTALLING,
    (_S.ASSIGNED, _E.SPAWNED): _S.STARTING,
    (_S.ASSIGNED, _E.REFUSED): _S.FAILED,
    (_S.ASSIGNED, _E.STOP_ASKED): _S.STOPPED,
    (_S.FETCHING, _E.INSTALL_BEGUN): _S.INSTALLING,
    (_S.FETCHING, _E.SPAWNED): _S.STARTING,
    (_S.FETCHING, _E.REFUSED): _S.FAILED,
    (_S.FETCHING, _E.STOP_ASKED): _S.STOPPED,
    (_S.INSTALLING, _E.SPAWNED): _S.STARTING,
    (_S.INSTALLING, _E.REFUSED): _S.FAILED,
    (_S.INSTALLING, _E.STOP_ASKED): _S.STOPPED,
    (_S.STARTING, _E.PROBE_PASSED): _S.READY,
    # Only of an engine that runs elsewhere: nobody here can end it and start it again.
    (_S.STARTING, _E.PROBE_FAILED): _S.UNHEALTHY,
    (_S.STARTING, _E.EXITED): _S.BACKOFF,
    (_S.STARTING, _E.GAVE_UP): _S.CRASH_LOOP,
    (_S.STARTING, _E.STOP_ASKED): _S.STOPPING,
    (_S.READY, _E.PROBE_PASSED): _S.READY,
    (_S.READY, _E.PROBE_FAILED): _S.UNHEALTHY,
    (_S.READY, _E.EXITED): _S.BACKOFF,
    (_S.READY, _E.GAVE_UP): _S.CRASH_LOOP,
    (_S.READY, _E.STOP_ASKED): _S.STOPPING,
    (_S.UNHEALTHY, _E.PROBE_PASSED): _S.READY,
    (_S.UNHEALTHY, _E.PROBE_FAILED): _S.UNHEALTHY,
    (_S.UNHEALTHY, _E.EXITED): _S.BACKOFF,
    (_S.UNHEALTHY, _E.GAVE_UP): _S.CRASH_LOOP,
    (_S.UNHEALTHY, _E.STOP_ASKED): _S.STOPPING,
    (_S.BACKOFF, _E.RETRY_DUE): _S.ASSIGNED,
    (_S.BACKOFF, _E.STOP_ASKED): _S.STOPPED,
    (_S.CRASH_LOOP, _E.STOP_ASKED): _S.STOPPED,
    (_S.FAILED, _E.STOP_ASKED): _S.STOPPED,
    (_S.STOPPING, _E.EXITED): _S.STOPPING,
    (_S.STOPPING, _E.TREE_GONE): _S.STOPPED,
}


def next_replica_state(state: ReplicaState, event: Event) -> ReplicaState | None:
    """Return the state after `event`, or None when the table has no such transition."""
    return REPLICA_TRANSITIONS.get((state, event))


OCCUPYING = frozenset(
    {
        _S.ASSIGNED,
        _S.FETCHING,
        _S.INSTALLING,
        _S.STARTING,
        _S.READY,
        _S.UNHEALTHY,
        _S.STOPPING,
        _S.BACKOFF,
        _S.LOST,
    }
)
"""States in which a replica's promise of memory still stands."""

SERVING = frozenset({_S.READY})
"""States in which a replica may be routed to."""
