"""A played cluster, its data directory, and `slice` as a real subprocess or on a pseudo-terminal."""

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import pytest

from core.infra import cluster as recorded
from core.infra.cluster import ClusterBlock
from tests.cli.played import API_KEY, TOKEN, PlayedCluster

DEADLINE_S = 20.0


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


class Slice:
    """The slice command pointed at one data directory, with an environment of its own."""

    def __init__(self, data_dir: Path, home: Path) -> None:
        self.data_dir = data_dir
        self.home = home
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "TZ": "UTC",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self._terminals: list[OnTerminal] = []

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli", "--data-dir", str(self.data_dir), *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> Ended:
        done = subprocess.run(
            self.argv(*arguments),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            env={**self.environment, **environment},
            timeout=DEADLINE_S,
            check=False,
        )
        return Ended(code=done.returncode, out=done.stdout, err=done.stderr)

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


@pytest.fixture
def slice_(cluster: PlayedCluster, tmp_path: Path) -> Iterator[Slice]:
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
    made = Slice(data_dir, tmp_path)
    yield made
    made.close()
