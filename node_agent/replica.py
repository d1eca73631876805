"""One replica's life as a pure machine: `step(state, event, now) -> (state, effects)`.

Comes in: what happened (`node_agent.lifecycle`) with the monotonic instant in seconds. Goes out: the next `Replica` and
what its owner shall do. Called by `node_agent.runner`, and by tests without any process. It does no I/O, reads no clock
and draws no random number; `core.states.REPLICA_TRANSITIONS` alone says which state follows.
"""

from dataclasses import dataclass, field, replace

from core.errors import Retry
from core.states import Desired, Event, ReplicaState, next_replica_state
from node_agent.lifecycle import (
    Abandon,
    Adopted,
    Effect,
    EndEngine,
    EngineReady,
    Exited,
    FetchFiles,
    FilesReady,
    Happened,
    InstallEngine,
    PreparationFailed,
    ProbeFailed,
    ProbePassed,
    Spawn,
    Spawned,
    StopAsked,
    StopEngine,
    TimeCame,
    Wanted,
    Watch,
)


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When an engine that ended is started again; seconds. Kubernetes' and Nomad's shapes, with our numbers."""

    first_delay_s: float = 1.0
    delay_cap_s: float = 300.0
    jitter: float = 0.2
    """Share of the delay that chance adds or takes, so that a node's replicas do not come back in step."""
    reset_after_ready_s: float = 600.0
    loop_exits: int = 5
    loop_window_s: float = 900.0
    port_retries: int = 3
    """Free restarts when the port was taken between the look and the engine's bind."""
    memory_return_s: float = 30.0
    """How long a dead engine's device memory may take to come back; until then no other is started on top of it."""
    unresponsive_s: float = 120.0
    """How long an engine may live without answering before it is restarted: a long prompt may block its server."""

    def delay_s(self, restarts_in_a_row: int, chance: float) -> float:
        """Return the seconds to wait: first x 2^n, capped, times 1 -+ jitter; `chance` is 0 to 1."""
        base = min(self.delay_cap_s, self.first_delay_s * 2.0 ** min(restarts_in_a_row, 32))
        return base * (1.0 + self.jitter * (2.0 * chance - 1.0))


DEFAULT_POLICY = RestartPolicy()


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The engine's deadlines, seconds; from `adapters.contract.Health` and the cluster's settings."""

    start_timeout_s: float = 600.0
    failures_to_unhealthy: int = 3
    stop_grace_s: float = 10.0
    is_ours: bool = True
    """Whether the node starts and ends the engine; one that runs elsewhere is only seen well or unwell."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a replica is where it is, for people: a code of `core.errors`, a sentence, the engine's last lines."""

    code: str = ""
    message: str = ""
    log_tail: tuple[str, ...] = ()
    exit_code: int | None = None
    exit_signal: int | None = None


NO_FAULT = Fault()


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Everything the machine knows of one replica. Instants are monotonic seconds of this host."""

    state: ReplicaState = ReplicaState.ASSIGNED
    policy: RestartPolicy = RestartPolicy()
    bounds: Bounds = Bounds()
    incarnation: int = 0
    restarts: int = 0
    restarts_in_a_row: int = 0
    port_retries: int = 0
    exits: tuple[float, ...] = ()
    spawned_at: float | None = None
    ready_since: float | None = None
    silent_since: float | None = None
    probe_failures: int = 0
    load_s: float = 0.0
    wake_at: float | None = None
    """When `TimeCame` is wanted: the next start in backoff, or the next try of a failed preparation."""
    ending_as: Fault | None = None
    """Set while the node ends an engine that lives: what its exit shall be reported as."""
    fault: Fault = NO_FAULT


@dataclass(frozen=True, kw_only=True)
class Step:
    """The machine's answer to one event."""

    replica: Replica
    effects: tuple[Effect, ...] = field(default=())


def step(replica: Replica, event: Happened, now: float) -> Step:
    """Return the replica after `event` at `now` (monotonic seconds) and what its owner shall do.

    An event that the table of states does not know in this state changes nothing: it came too late.
    """
    match event:
        case Wanted():
            return _wanted(replica)
        case FilesReady():
            return _moved(replica, Event.INSTALL_BEGUN, (InstallEngine(),), wake_at=None, fault=NO_FAULT)
        case EngineReady() if replica.state is ReplicaState.INSTALLING:
            return Step(replica=replace(replica, wake_at=None), effects=(Spawn(incarnation=replica.incarnation + 1),))
        case PreparationFailed():
            return _preparation_failed(replica, event, now)
        case Spawned() | Adopted():
            return _spawned(replica, event, now)
        case ProbePassed():
            return _probe_passed(replica, now)
        case ProbeFailed():
            return _probe_failed(replica, event, now)
        case Exited():
            return _exited(replica, event, now)
        case TimeCame():
            return _time_came(replica, now)
        case StopAsked():
            return _stop_asked(replica)
        case _:  # TreeGone
            return _moved(replica, Event.TREE_GONE, wake_at=None)


def desired_event(desired: Desired, state: ReplicaState) -> Happened | None:
    """Return what the controller's wish means for a replica in `state`, or None when it means nothing new."""
    is_ending = state in (ReplicaState.STOPPING, ReplicaState.STOPPED)
    return StopAsked() if desired is Desired.STOP and not is_ending else None


def _moved(replica: Replica, event: Event, effects: tuple[Effect, ...] = (), **changes: object) -> Step:
    state = next_replica_state(replica.state, event)
    if state is None:
        return Step(replica=replica)
    return Step(replica=replace(replica, state=state, **changes), effects=effects)  # type: ignore[arg-type]


def _wanted(replica: Replica) -> Step:
    if not replica.bounds.is_ours and replica.state is ReplicaState.ASSIGNED:
        # Nothing to fetch and nothing to install: what is called its spawn only finds out where it is.
        return Step(replica=replace(replica, wake_at=None), effects=(Spawn(incarnation=replica.incarnation + 1),))
    return _moved(replica, Event.FETCH_BEGUN, (FetchFiles(),), wake_at=None)


def _engine_ready(replica: Replica) -> Step:
    if replica.state is not ReplicaState.INSTALLING:
        return Step(replica=replica)
    return Step(replica=replace(replica, wake_at=None), effects=(Spawn(incarnation=replica.incarnation + 1),))


def _preparation_failed(replica: Replica, event: PreparationFailed, now: float) -> Step:
    fault = Fault(code=event.failure.code, message=str(event.failure))
    if event.failure.retry is Retry.NEVER:
        return _moved(replica, Event.REFUSED, fault=fault, wake_at=None)
    is_preparing = replica.state in (ReplicaState.FETCHING, ReplicaState.INSTALLING)
    if not is_preparing and (replica.bounds.is_ours or replica.state is not ReplicaState.ASSIGNED):
        return Step(replica=replica)
    # The state stays: it still means to fetch or install, and says why it waits.
    delay_s = replica.policy.delay_s(replica.restarts_in_a_row, event.chance)
    return Step(
        replica=replace(replica, fault=fault, wake_at=now + delay_s, restarts_in_a_row=replica.restarts_in_a_row + 1)
    )


def _spawned(replica: Replica, event: Spawned | Adopted, now: float) -> Step:
    age_s, load_s = (event.age_s, event.load_s) if isinstance(event, Adopted) else (0.0, 0.0)
    return _moved(
        replica,
        Event.SPAWNED,
        (Watch(),),
        incarnation=event.incarnation,
        spawned_at=now - age_s,
        load_s=load_s,
        ready_since=None,
        silent_since=None,
        probe_failures=0,
        wake_at=None,
        ending_as=None,
    )


def _probe_passed(replica: Replica, now: float) -> Step:
    if replica.ending_as is not None:
        return Step(replica=replica)
    is_first = replica.state is ReplicaState.STARTING
    load_s = replica.load_s
    if is_first and not load_s:
        load_s = max(0.001, now - (now if replica.spawned_at is None else replica.spawned_at))
    ready_since = now if replica.ready_since is None else replica.ready_since
    is_settled = now - ready_since >= replica.policy.reset_after_ready_s
    return _moved(
        replica,
        Event.PROBE_PASSED,
        load_s=load_s,
        ready_since=ready_since,
        silent_since=None,
        probe_failures=0,
        port_retries=0,
        restarts_in_a_row=0 if is_settled else replica.restarts_in_a_row,
        exits=() if is_settled else replica.exits,
        fault=NO_FAULT,
    )


def _probe_failed(replica: Replica, event: ProbeFailed, now: float) -> Step:
    if replica.ending_as is not None:
        return Step(replica=replica)
    if not replica.bounds.is_ours:
        return _remote_probe_failed(replica, event, now)
    if replica.state is ReplicaState.STARTING:
        waited_s = now - (now if replica.spawned_at is None else replica.spawned_at)
        if waited_s < replica.bounds.start_timeout_s:
            return Step(replica=replica)
        return _end(replica, "engine.start_timeout", f"the engine did not answer within {waited_s:.0f} s of its start")
    if replica.state not in (ReplicaState.READY, ReplicaState.UNHEALTHY):
        return Step(replica=replica)
    silent_since = now if replica.silent_since is None else replica.silent_since
    failures = replica.probe_failures + 1
    replica = replace(replica, silent_since=silent_since, probe_failures=failures)
    if failures < replica.bounds.failures_to_unhealthy and replica.state is ReplicaState.READY:
        return Step(replica=replica)
    silent_s = now - silent_since
    if replica.state is ReplicaState.UNHEALTHY and silent_s >= replica.policy.unresponsive_s:
        return _end(replica, "engine.unresponsive", f"the engine has not answered its probe for {silent_s:.0f} s")
    # Invariant: an unhealthy replica is never ready for ten minutes; the reset counts from its next good probe.
    fault = Fault(code="engine.unresponsive", message=f"the engine lives but its health probe fails: {event.reason}")
    return _moved(replica, Event.PROBE_FAILED, ready_since=None, fault=fault)


def _remote_probe_failed(replica: Replica, event: ProbeFailed, now: float) -> Step:
    """Return what a failed probe means for an engine that runs elsewhere: it is told of, and nothing is ended.

    One that was never well says why from its first failed probe on, so that an operator who mistyped a URL need not
    wait; it is unhealthy after as many as any other.
    """
    silent_since = now if replica.silent_since is None else replica.silent_since
    failures = replica.probe_failures + 1
    fault = Fault(code="engine.unresponsive", message=f"the remote endpoint is not well: {event.reason}")
    replica = replace(replica, silent_since=silent_since, probe_failures=failures)
    if failures < replica.bounds.failures_to_unhealthy and replica.state is not ReplicaState.UNHEALTHY:
        is_new = replica.state is ReplicaState.STARTING
        return Step(replica=replace(replica, fault=fault) if is_new else replica)
    return _moved(replica, Event.PROBE_FAILED, ready_since=None, fault=fault)


def _end(replica: Replica, code: str, message: str) -> Step:
    fault = Fault(code=code, message=message)
    return Step(replica=replace(replica, ending_as=fault, fault=fault), effects=(EndEngine(),))


_OUT_OF_MEMORY = {
    "cgroup": "a memory limit above it was reached; raise the limit of the service or container it runs in, or give it "
    "a smaller context or model",
    "host": "the machine ran out of main memory; end what else uses it, or give it a smaller context or model",
}


def _exit_fault(replica: Replica, event: Exited) -> Fault:
    if replica.ending_as is not None:
        code, message = replica.ending_as.code, replica.ending_as.message
    else:
        code = "engine.died_at_start" if replica.state is ReplicaState.STARTING else "engine.exited"
        when = "before it was ready" if replica.state is ReplicaState.STARTING else "while it was serving"
        how = f"was killed by signal {event.exit_signal}" if event.exit_signal else f"ended with code {event.exit_code}"
        message = f"the engine could not be started: {event.reason}" if event.reason else f"the engine {how} {when}"
        if whose := _OUT_OF_MEMORY.get(event.out_of_memory):
            code = "engine.out_of_memory"
            message = f"the engine was ended by the kernel {when}: {whose}"
    return Fault(
        code=code,
        message=message,
        log_tail=event.log_tail,
        exit_code=event.exit_code,
        exit_signal=event.exit_signal,
    )


def _exited(replica: Replica, event: Exited, now: float) -> Step:
    if replica.state is ReplicaState.STOPPING:
        return _moved(replica, Event.EXITED)
    policy, fault = replica.policy, _exit_fault(replica, event)
    cleared = replace(
        replica, spawned_at=None, ready_since=None, silent_since=None, probe_failures=0, ending_as=None, fault=fault
    )
    # 1. The port was taken under our hands: try another at once; that is no fault of the engine.
    if event.is_port_taken and replica.port_retries < policy.port_retries:
        return _moved(cleared, Event.EXITED, port_retries=replica.port_retries + 1, wake_at=now)
    was_settled = replica.ready_since is not None and now - replica.ready_since >= policy.reset_after_ready_s
    earlier = () if was_settled else tuple(at for at in replica.exits if now - at < policy.loop_window_s)
    in_a_row = 0 if was_settled else replica.restarts_in_a_row
    exits = (*earlier, now)
    # 2. Too often: wait for an operator.
    if len(exits) >= policy.loop_exits:
        message = f"{fault.message}; it ended {len(exits)} times within {policy.loop_window_s / 60:.0f} minutes"
        return _moved(cleared, Event.GAVE_UP, exits=exits, fault=replace(fault, message=message), wake_at=None)
    # 3. Start it again after a pause that doubles.
    return _moved(
        cleared,
        Event.EXITED,
        exits=exits,
        restarts_in_a_row=in_a_row + 1,
        wake_at=now + policy.delay_s(in_a_row, event.chance),
    )


def _time_came(replica: Replica, now: float) -> Step:
    if replica.wake_at is None or now < replica.wake_at:
        return Step(replica=replica)
    if replica.state is ReplicaState.ASSIGNED:
        return _wanted(replica)
    if replica.state is ReplicaState.FETCHING:
        return Step(replica=replace(replica, wake_at=None), effects=(FetchFiles(),))
    if replica.state is ReplicaState.INSTALLING:
        return Step(replica=replace(replica, wake_at=None), effects=(InstallEngine(),))
    due = _moved(replica, Event.RETRY_DUE, wake_at=None, restarts=replica.restarts + 1)
    # The way from the start again: a file may have been removed, an engine's environment be broken.
    return _wanted(due.replica) if due.replica.state is ReplicaState.ASSIGNED else due


def _stop_asked(replica: Replica) -> Step:
    stopped = _moved(replica, Event.STOP_ASKED, wake_at=None, fault=NO_FAULT, ending_as=None)
    if stopped.replica.state is ReplicaState.STOPPING:
        return replace(stopped, effects=(StopEngine(grace_s=replica.bounds.stop_grace_s),))
    if stopped.replica.state is ReplicaState.STOPPED and replica.state is not ReplicaState.STOPPED:
        return replace(stopped, effects=(Abandon(),))
    return stopped
