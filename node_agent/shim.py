"""The shim: owns one engine's process tree, exit code and log, and outlives whoever started it.

Comes in: the path of a JSON file (the fields of `node_agent.shim_client.ShimSpec`), then JSON lines on a unix socket.
Goes out: `record.json` in `record_dir`, and answers on the socket. Run by path as `python -I -S shim.py SPEC.json`;
standard library only, none of our packages but `cgroups.py` beside it, one thread. Must never end while a process of
its tree lives, never leave a tree without its leader, and never touch a process outside its own tree.

Operations, one JSON object a line: `status`, `stop` (`grace_s`), `wait`, `release`. Every answer is one JSON line
`{"ok": true, ...status}` or `{"ok": false, "error": "..."}`.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from node_agent import cgroups
else:  # by path: in isolation there are no packages, and an upgrade may change what lies beside us only for the next
    _found = importlib.util.spec_from_file_location("cgroups", os.path.join(os.path.dirname(__file__), "cgroups.py"))
    cgroups = importlib.util.module_from_spec(_found)
    _found.loader.exec_module(cgroups)

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_TICK_S = 2.0  # how often the log's size and the socket's presence are looked at
_KILL_ROUND_S = 0.02  # first pause between two rounds of killing; it doubles up to a quarter second
_LINE_MAX = 65536
_OOM_SCORE = "300"  # when memory runs out the kernel should take the engine, not its shim
_RECORD_FORMAT = 1


def _stat_fields(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as stream:  # a name may be any bytes
            text = stream.read()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _start_ticks(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else 0


def _is_living(pid: int) -> bool:
    fields = _stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def descendants(root: int) -> list[tuple[int, int]]:
    """Return (pid, start ticks) of every living process below `root`, zombies and `root` itself left out."""
    children: dict[int, list[int]] = {}
    living: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        fields = _stat_fields(int(entry)) if entry.isdigit() else None
        if fields is None:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry))
        if fields[0] not in "ZX":
            living[int(entry)] = int(fields[19])
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += [pid for pid in below if pid in living]
        todo += below
    return [(pid, living[pid]) for pid in found]


def _kill_exactly(pid: int, start_ticks: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _start_ticks(pid) == start_ticks:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        pass  # gone between the look and the signal
    finally:
        os.close(handle)


def _write_whole(path: str, text: str) -> None:
    temporary = f"{path}.new"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rotate(path: str, max_bytes: int, kept: int) -> None:
    """Cut the log at `path` when it is longer than `max_bytes`; its end goes to `path.1`, and so on up to `path.kept`.

    All files together hold at most `max_bytes * (1 + kept)` and what is written between two looks. Copied and cut,
    because the engine keeps its file open: lines written in between are lost.
    """
    size = os.stat(path).st_size
    if size <= max_bytes:
        return
    try:
        for number in range(kept, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}.{number - 1}", f"{path}.{number}")
        if kept:
            _copy_end(path, f"{path}.1", max(0, size - max_bytes), max_bytes)
    except OSError:
        # A full disk: the room is worth more than the lines, and an engine that cannot write its log may end of it.
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.1")
    os.truncate(path, 0)


def _copy_end(path: str, to: str, begin: int, left: int) -> None:
    with open(path, "rb") as source, open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy:
        source.seek(begin)
        while left > 0 and (block := source.read(min(left, 1 << 20))):  # one who writes on and on is not followed
            copy.write(block)
            left -= len(block)


class Record:
    """`record.json`: what is true of the tree, on disk before anybody is told."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._path = os.path.join(spec["record_dir"], "record.json")
        self.values: dict[str, Any] = {
            "format": _RECORD_FORMAT,
            "shim_id": spec["shim_id"],
            "boot_id": _boot_id(),
            "shim": {"pid": os.getpid(), "start_ticks": _start_ticks(os.getpid())},
            "intent": {key: spec[key] for key in ("argv", "cwd", "log_path", "socket_path", "stop_grace_s")},
            "incarnation": spec["incarnation"],
            "leader": None,
            "state": "spawning",
            "exit_code": None,
            "exit_signal": None,
            "spawn_error": None,
            "out_of_memory": "",
            "cgroup": None,
            "tree_gone": False,
            "is_full": False,
        }
        self.write()

    def write(self) -> None:
        """Put the values on disk; a full disk must not keep the shim from doing its work, so it is only noted."""
        try:
            _write_whole(self._path, json.dumps(self.values, indent=1) + "\n")
            self.values["is_full"] = False
        except OSError:
            if self.values["state"] == "spawning":
                raise
            self.values["is_full"] = True

    def status(self) -> dict[str, Any]:
        """Return the part that clients are told."""
        names = ("shim", "shim_id", "incarnation", "leader", "state", "exit_code", "exit_signal", "spawn_error")
        return {name: self.values[name] for name in (*names, "out_of_memory", "cgroup", "tree_gone")}


class Leader:
    """The spawn of the engine: a child that waits at a gate until its pid is on disk, then becomes the engine."""

    def __init__(self, spec: dict[str, Any]) -> None:
        gate_read, self._gate = os.pipe2(os.O_CLOEXEC)
        self._errors, error_write = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _become_engine(spec, gate_read, error_write)
        os.close(gate_read)
        os.close(error_write)

    def open_gate(self) -> str:
        """Let the child go on; return "" when the engine's program runs, else why it does not."""
        with contextlib.suppress(OSError):
            os.write(self._gate, b"1")
        os.close(self._gate)
        with os.fdopen(self._errors, "rb") as stream:
            return stream.read().decode(errors="replace")


def _become_engine(spec: dict[str, Any], gate: int, errors: int) -> NoReturn:
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            # An ignored signal stays ignored across exec: the engine must get its SIGTERM.
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write(_OOM_SCORE)
        log = os.open(spec["log_path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(spec["cwd"])
        if not os.read(gate, 1):
            os._exit(127)  # the shim died before it could write our pid down: nobody would ever find us
        # The pipe for errors closes itself on exec; that end of file is how the shim sees success.
        os.closerange(3, errors)
        os.closerange(errors + 1, 65536)
        os.execvpe(spec["argv"][0], list(spec["argv"]), dict(spec["env"]))  # noqa: S606 - what it is for
    except BaseException as error:  # noqa: BLE001 - a forked child may never return into its parent's code
        os.write(errors, f"{spec['argv'][0]}: {getattr(error, 'strerror', None) or repr(error)}".encode())
    os._exit(127)


class Client:
    """One connection and the operation it waits for, if any."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.buffer = b""
        self.waits_for = ""


class Shim:
    """The event loop: signals, socket, and the end of the tree."""

    def __init__(self, spec: dict[str, Any], record: Record) -> None:
        self._spec = spec
        self._record = record
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, Client] = {}
        self._leader_pid = 0
        self._is_stopping = False
        self._is_killing = False
        self._is_released = False
        self._kill_at: float | None = None
        self._round_s = _KILL_ROUND_S
        self._places = cgroups.places()
        self._group: cgroups.Group | None = None
        self._counts = self._newer_counts = cgroups.counts(None, self._places)
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._spec["socket_path"])
        os.chmod(self._spec["socket_path"], 0o600)
        listener.listen(16)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        return listener

    def spawn(self) -> None:
        """Start the engine; a failure to do so is recorded as an exit with a reason."""
        values = self._record.values
        leader = Leader(self._spec)
        self._leader_pid = leader.pid
        values["leader"] = {"pid": leader.pid, "start_ticks": _start_ticks(leader.pid)}
        # Before the gate opens: what the engine forks is born inside.
        name = f"{self._spec['shim_id']}.{os.getpid()}-{values['shim']['start_ticks']}"
        self._group = cgroups.enter(leader.pid, name, self._places)
        if self._group is not None:
            values["cgroup"] = {"kind": self._group.kind, "folder": self._group.folder}
        self._counts = self._newer_counts = cgroups.counts(self._group, self._places)
        self._record.write()
        error = leader.open_gate()
        if error:
            values["spawn_error"] = error[:500]
        else:
            values["state"] = "running"
            self._record.write()

    def run(self) -> None:
        """Serve until released; then the socket is gone and nothing of the tree lives."""
        next_tick = time.monotonic() + _TICK_S
        while not self._is_released:
            self._reap()
            self._advance_end()
            now = time.monotonic()
            if now >= next_tick:
                self._look_around()
                next_tick = now + _TICK_S
            due = min(next_tick, self._kill_at if self._kill_at is not None else next_tick)
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                self._handle(key.fileobj)
        with contextlib.suppress(OSError):
            os.unlink(self._spec["socket_path"])

    def _handle(self, ready: Any) -> None:
        if ready is self._listener:
            self._accept()
        elif ready == self._wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        elif isinstance(ready, socket.socket) and ready.fileno() in self._clients:
            self._read(self._clients[ready.fileno()])

    # -- the tree ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._leader_pid:
                self._leader_ended(os.waitstatus_to_exitcode(status))

    def _leader_ended(self, code: int) -> None:
        values = self._record.values
        self._leader_pid = 0
        values["exit_code"], values["exit_signal"] = (code, None) if code >= 0 else (None, -code)
        values["state"] = "stopped" if self._is_stopping else "exited"
        if code and not self._is_stopping:
            now = cgroups.counts(self._group, self._places)
            was_killed = code == -signal.SIGKILL
            values["out_of_memory"] = cgroups.out_of_memory(self._counts, now, was_killed=was_killed)
        self._record.write()
        self._answer_waiting("wait")
        # An engine without its leader is dead, but its workers may still hold a GPU.
        self._is_killing, self._kill_at = True, time.monotonic()

    def _advance_end(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._is_killing = True
        if self._group is not None:
            self._group.kill()
        rest = descendants(os.getpid())
        for pid, ticks in rest:
            _kill_exactly(pid, ticks)
        self._reap()
        if not rest and self._leader_pid == 0 and self._is_group_gone():
            self._kill_at = None
            self._record.values["tree_gone"] = True
            self._record.write()
            self._answer_waiting("stop")
            return
        # Invariant: killing goes on until a look at /proc finds nothing; a fork between look and kill is met next time.
        self._kill_at = time.monotonic() + self._round_s
        self._round_s = min(0.25, self._round_s * 2)

    def _is_group_gone(self) -> bool:
        if self._group is None or self._group.remove():
            return True
        # Groups below, made by a container program, may be ones that we must not remove; only living members count.
        return not any(_is_living(pid) for pid in self._group.pids())

    def _stop(self, grace_s: float) -> None:
        if self._record.values["tree_gone"]:
            return
        until = time.monotonic() + grace_s
        if not self._is_stopping and self._leader_pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader_pid, signal.SIGTERM)
        self._is_stopping = True
        if not self._is_killing:
            self._kill_at = min(until, self._kill_at) if self._kill_at is not None else until

    # -- log and socket ------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        if not self._counts.is_own:
            # A counter that others share says something of the last moments only; of two looks the older one is kept
            # for comparison, since a big process takes a while from its kill to its exit.
            self._counts, self._newer_counts = self._newer_counts, cgroups.counts(self._group, self._places)
        with contextlib.suppress(OSError):
            rotate(self._spec["log_path"], self._spec["log_max_bytes"], self._spec["log_kept"])
        if not os.path.exists(self._spec["socket_path"]):
            # Cleaners of temporary directories remove old sockets; without one nobody could adopt the engine.
            old = self._listener
            with contextlib.suppress(OSError):
                self._listener = self._listen()
                self._selector.unregister(old)
                old.close()

    def _accept(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] not in (os.getuid(), 0):
            link.close()
            return
        link.setblocking(False)
        self._clients[link.fileno()] = Client(link)
        self._selector.register(link, selectors.EVENT_READ)

    def _drop(self, client: Client) -> None:
        self._clients.pop(client.link.fileno(), None)
        self._selector.unregister(client.link)
        client.link.close()

    def _read(self, client: Client) -> None:
        try:
            data = client.link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.buffer += data
        if not data or len(client.buffer) > _LINE_MAX:
            self._drop(client)
            return
        while b"\n" in client.buffer and client.link.fileno() in self._clients:
            line, _, client.buffer = client.buffer.partition(b"\n")
            self._operate(client, line)

    def _operate(self, client: Client, line: bytes) -> None:
        try:
            asked = json.loads(line)
            operation, grace_s = asked["op"], float(asked.get("grace_s", self._spec["stop_grace_s"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._send(client, {"ok": False, "error": "malformed"})
            return
        values = self._record.values
        if operation == "stop":
            self._stop(max(0.0, grace_s))
        is_due = {
            "status": True,
            "stop": values["tree_gone"],
            "wait": values["state"] in ("exited", "stopped"),
            "release": True,
        }.get(operation)
        if is_due is None:
            self._send(client, {"ok": False, "error": "unknown operation"})
        elif operation == "release" and not values["tree_gone"]:
            self._send(client, {"ok": False, "error": "the tree still lives"})
        elif is_due:
            self._is_released = operation == "release"
            self._send(client, {"ok": True, **self._record.status()})
        else:
            client.waits_for = operation

    def _answer_waiting(self, operation: str) -> None:
        for client in list(self._clients.values()):
            if client.waits_for == operation:
                client.waits_for = ""
                self._send(client, {"ok": True, **self._record.status()})

    def _send(self, client: Client, answer: dict[str, Any]) -> None:
        try:
            client.link.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            self._drop(client)  # it left, or never reads: nobody waits for this answer


def _detach(report: int, spec: dict[str, Any]) -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    quiet = os.open(os.devnull, os.O_RDWR)
    notes = os.open(os.path.join(spec["record_dir"], "shim.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)
    os.dup2(notes, 2)
    os.closerange(3, report)
    os.closerange(report + 1, 65536)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER was refused")


def _be_the_only_one(spec: dict[str, Any]) -> None:
    """Hold this record's lock for life, so that a socket file that is there is a dead one's."""
    lock = os.open(os.path.join(spec["record_dir"], "shim.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise OSError(0, f"a shim for {spec['shim_id']} runs already") from None
    if os.path.lexists(spec["socket_path"]):
        os.unlink(spec["socket_path"])


def _serve(report: int, spec: dict[str, Any]) -> NoReturn:
    try:
        try:
            _detach(report, spec)
            _be_the_only_one(spec)
            shim = Shim(spec, Record(spec))
        except (OSError, KeyError) as error:
            os.write(report, f"{getattr(error, 'strerror', None) or repr(error)}\n".encode())
            os._exit(1)
        os.write(report, b"ok")
        os.close(report)
        shim.spawn()
        shim.run()
    except BaseException as error:  # noqa: BLE001 - the outermost frame: the reason goes to shim.log
        print(f"shim failed: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(arguments: list[str]) -> int:
    """Start the shim that the JSON file named by the only argument describes; return the starter's exit code."""
    try:
        with open(arguments[0]) as stream:
            spec = json.load(stream)
        os.makedirs(spec["record_dir"], mode=0o700, exist_ok=True)
    except (IndexError, OSError, ValueError, KeyError) as error:
        print(f"usage: shim.py SPEC.json ({error!r})", file=sys.stderr)
        return 2
    heard, report = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(heard)
        _serve(report, spec)
    os.close(report)
    os.waitpid(middle, 0)
    with os.fdopen(heard, "rb") as stream:
        answer = stream.read().decode(errors="replace")
    if answer == "ok":
        return 0
    print(answer.strip() or "the shim ended before it was ready", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
