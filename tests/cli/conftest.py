"""A played cluster, its data directory, and `slice` as a real subprocess or on a pseudo-terminal."""

import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import IO

import pytest

from core.infra import cluster as recorded
from core.infra.cluster import ClusterBlock
from tests.cli.played import API_KEY, TOKEN, PlayedCluster

DEADLINE_S = 20.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What one run of slice left."""

    code: int
    out: str
    err: str


class OnTerminal:
    """One run of slice on a pseudo-terminal, 100 columns wide."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._main, side = pty.openpty()
        ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._process = subprocess.Popen(
            arguments, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True, close_fds=True
        )
        os.close(side)
        self.seen = ""

    def until(self, text: str) -> str:
        """Read until `text` was shown; return all that was shown so far."""
        self._read(lambda: text in self.seen, f"never saw {text!r} in:\n{self.seen}")
        return self.seen

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal's session has one foreground process."""
        os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> int:
        """Read to the end and return the exit code."""
        self._read(lambda: False, "slice did not end")
        return self._process.wait(DEADLINE_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._main)

    def _read(self, is_enough: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_enough():
            ready, _, _ = select.select([self._main], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, complaint
            try:
                block = os.read(self._main, 65536)
            except OSError:  # EIO: the other side is closed
                return
            self.seen += block.decode(errors="replace")


class Springboard:
    """Runs slice in a process forked from one that has its modules already; see springboard.py."""

    def __init__(self) -> None:
        self._line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.springboard", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )

    def run(self, arguments: list[str], environment: dict[str, str], stdin: str | None) -> Ended:
        reading, code_side = os.pipe()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _input(stdin) as given:
            message = json.dumps({"argv": arguments, "env": environment}).encode()
            socket.send_fds(self._line, [message], [given.fileno(), out.fileno(), err.fileno(), code_side])
            os.close(code_side)
            ready, _, _ = select.select([reading], [], [], DEADLINE_S)
            code = os.read(reading, 16) if ready else b""
            os.close(reading)
            assert code, f"slice {arguments} did not end within {DEADLINE_S} s"
            return Ended(code=int(code), out=_written(out), err=_written(err))

    def close(self) -> None:
        self._line.close()
        self._process.wait(DEADLINE_S)


def _input(text: str | None) -> IO[bytes]:
    if text is None:
        return open(os.devnull, "rb")
    reading, writing = os.pipe()
    with open(writing, "wb") as stream:
        stream.write(text.encode())
    return open(reading, "rb")


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class Slice:
    """The slice command pointed at one data directory, with an environment of its own."""

    def __init__(self, data_dir: Path, home: Path, springboard: Springboard) -> None:
        self._springboard = springboard
        self.data_dir = data_dir
        self.home = home
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "TZ": "UTC",
            "PYTHONPATH": str(ROOT),
        }
        self._terminals: list[OnTerminal] = []

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli", "--data-dir", str(self.data_dir), *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> Ended:
        return self._springboard.run(self.argv(*arguments)[3:], {**self.environment, **environment}, stdin)

    def started(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            bufsize=1,
        )

    def on_terminal(self, *arguments: str, **environment: str) -> OnTerminal:
        made = OnTerminal(self.argv(*arguments), {**self.environment, **environment})
        self._terminals.append(made)
        return made

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()


@pytest.fixture
def cluster() -> Iterator[PlayedCluster]:
    played = PlayedCluster()
    played.start()
    yield played
    played.stop()


@pytest.fixture(scope="session")
def springboard() -> Iterator[Springboard]:
    made = Springboard()
    yield made
    made.close()


@pytest.fixture
def slice_(cluster: PlayedCluster, tmp_path: Path, springboard: Springboard) -> Iterator[Slice]:
    data_dir = tmp_path / "data"
    (data_dir / "secrets").mkdir(parents=True)
    block = ClusterBlock(
        cluster_id="clu_1",
        data_dir=data_dir,
        runtime_dir=tmp_path / "run",
        host="127.0.0.1",
        door_port=cluster.door_port,
        controller_port=cluster.admin_port,
        base_port=20000,
    )
    recorded.save(block)
    recorded.write_private(block.secret_file("operator_token"), TOKEN)
    recorded.write_private(block.secret_file("api_key"), API_KEY + "\n")
    made = Slice(data_dir, tmp_path, springboard)
    yield made
    made.close()
