"""The keeper of one container: runs under a shim, starts the container, leads requests into it, ends with it.

Comes in: the path of a JSON file written by `node_agent.runtimes.container`. Run by path as `python -I -S keeper.py
FILE`; standard library only. Goes out: a listener on loopback, whose connections go to the engine's port inside, and
the container's exit code as its own (3: it could not be made or started, 4: the port is taken, 5: the way in
broke, 6: it ended and nobody knows how).

A container with no network cannot publish a port. A socket, though, belongs to the network namespace in which it was
made, whatever its owner enters later: so a child of ours takes the listener, made out here, into the container's
namespace (setns(2)), where every connection it opens is one from the container's own loopback. The container gets no
way out by that: nothing in it can make a socket out here, and the child opens none but to that one port.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from typing import Any, NoReturn

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # sched.h
_CHUNK_BYTES = 65536
_CONNECT_S = 5.0
_COMMAND_S = 120.0  # a first start copies an image's layers for its user namespace on some storage drivers
_WAIT_S = 5.0  # the exit code is written within milliseconds, unless its writer (conmon) was killed
_NOT_STARTED, _PORT_TAKEN, _WAY_BROKEN, _UNKNOWN = 3, 4, 5, 6


def _say(text: str) -> None:
    print(f"slice: {text}", file=sys.stderr, flush=True)


def _run(argv: list[str], *, is_quiet: bool = False, timeout_s: float = _COMMAND_S) -> tuple[int, str]:
    """Run a command of podman or docker and return its exit code and what it printed; what it complains of is logged.

    In a session of its own, so that the shim's signal to our group does not cut it in half.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_quiet else None,
            timeout=timeout_s,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _say(f"{argv[0]} {argv[1]} failed: {error}")
        return 127, ""
    return done.returncode, done.stdout.decode(errors="replace").strip()


def _start(argv: list[str]) -> int:
    """Start the container with our own output as its: the log driver passes descriptors on, and a pipe would end."""
    try:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=_COMMAND_S, start_new_session=True).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        _say(f"{argv[0]} {argv[1]} failed: {error}")
        return 127


# -- the way in ------------------------------------------------------------------------------------------------------


def _enter(pid: int) -> None:
    """Enter the network namespace of process `pid`, by way of its user namespace when ours gives no right to."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as network, open(f"/proc/{pid}/ns/user") as user:
        if libc.setns(network.fileno(), _CLONE_NEWNET) == 0:
            return
        if libc.setns(user.fileno(), _CLONE_NEWUSER) != 0 or libc.setns(network.fileno(), _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()


async def _lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Carry one connection. A client that ends is gone: the engine sees it at once and stops generating."""
    inside = None
    try:
        async with asyncio.timeout(_CONNECT_S):
            back, inside = await asyncio.open_connection("127.0.0.1", port)
        up = asyncio.ensure_future(_pump(reader, inside))
        down = asyncio.ensure_future(_pump(back, writer))
        done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        is_answered = down in done and down.exception() is None
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        if is_answered:
            writer.close()  # what is still on its way to the client arrives
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        for end in (writer, inside):
            if end is not None:
                end.transport.abort()


async def _serve(listener: socket.socket, port: int) -> None:
    server = await asyncio.start_server(lambda reader, writer: _lead(reader, writer, port), sock=listener)
    async with server:
        await server.serve_forever()


def _forward(listener: socket.socket, pid: int, port: int, kept: int) -> NoReturn:
    """Be the child that serves the listener from inside the container's network, until its keeper dies."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # streams end with the engine, not before it
        os.closerange(3, kept)
        os.closerange(kept + 1, 4096)
        _enter(pid)
        asyncio.run(_serve(listener, port))
    except BaseException as error:
        _say(f"the way into the container broke: {error!r}")
    os._exit(_WAY_BROKEN)


# -- the container ---------------------------------------------------------------------------------------------------


class Keeper:
    """One container from its making to its end."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._wake, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        self._is_ending = False
        signal.signal(signal.SIGTERM, self._end_asked)
        signal.signal(signal.SIGINT, self._end_asked)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _end_asked(self, number: int, frame: object) -> None:
        self._is_ending = True

    def run(self, listener: socket.socket) -> int:
        """Return the container's exit code, or one of ours."""
        commands = self._spec["commands"]
        _run(commands["remove"], is_quiet=True)  # one that a killed keeper left
        code, _ = _run(commands["create"])
        if code != 0 or self._is_ending:
            return _NOT_STARTED
        if _start(commands["start"]) != 0:
            return _NOT_STARTED
        code, text = _run(commands["leader"])
        if code != 0 or not text.isdigit() or int(text) == 0:
            return self._ended("it ended at once")
        try:
            container = os.pidfd_open(int(text))
        except OSError:
            return self._ended("it ended at once")
        if commands["log"]:
            subprocess.Popen(commands["log"], stdin=subprocess.DEVNULL, start_new_session=True)
        child = os.fork()
        if child == 0:
            _forward(listener, int(text), self._spec["inside_port"], listener.fileno())
        listener.close()
        _say(f"the container {self._spec['name']} runs")
        if not self._waited(container, child):
            return _WAY_BROKEN
        return self._ended("")

    def _waited(self, container: int, child: int) -> bool:
        """Wait for the container's end, asking it to when we are asked; return False when the way in broke before."""
        selector = selectors.DefaultSelector()
        selector.register(container, selectors.EVENT_READ)
        selector.register(self._wake, selectors.EVENT_READ)
        is_told = False
        while True:
            if self._is_ending and not is_told:
                is_told = True
                _run(self._spec["commands"]["signal"], is_quiet=True)
            for key, _ in selector.select():
                if key.fd == container:
                    return True
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(child, os.WNOHANG)[0] == child:
                    return False

    def _ended(self, why: str) -> int:
        _, text = _run(self._spec["commands"]["wait"], is_quiet=True, timeout_s=_WAIT_S)
        if not text.isdigit():
            _say("the container ended, and nobody knows how")
            return _UNKNOWN
        _say(f"the container ended with code {text}" + (f": {why}" if why else ""))
        return min(int(text), 255)


def main(arguments: list[str]) -> int:
    """Keep the container that the JSON file named by the only argument describes."""
    with open(arguments[0]) as stream:
        spec = json.load(stream)
    host, port = spec["listen"]
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        _say(f"cannot listen on {host}:{port}: {error.strerror}")
        return _PORT_TAKEN
    listener.listen(512)
    listener.setblocking(False)
    keeper = Keeper(spec)
    try:
        return keeper.run(listener)
    finally:
        _run(spec["commands"]["remove"], is_quiet=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
