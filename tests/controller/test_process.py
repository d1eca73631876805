"""The controller as a process: fast, small, ended by SIGTERM, taken over at once after SIGKILL, alone on its socket."""

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.waiting import until


class Run:
    """One controller process."""

    def __init__(self, url: str, control: Path, port: int) -> None:
        self._port = port
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.controller.standalone", url, str(control), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def health(self) -> int:
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)) as line:
                line.request("GET", "/health")
                return line.getresponse().status
        except OSError:
            return 0

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout=10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def started(url: str, runtime: Path) -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.close()


def test_it_starts_fast_stays_small_and_ends_on_sigterm(url: str, runtime: Path, started: list[Run]) -> None:
    port = free_port()
    started.append(Run(url, runtime / "c.sock", port))
    until(lambda: started[0].health() == 200, what="health")
    took_s = time.monotonic() - started[0].began
    resident = psutil.Process(started[0].process.pid).memory_info().rss
    assert took_s < 5, "1.5 s on an idle machine"
    assert resident < 130 * 1024**2
    assert started[0].end(signal.SIGTERM) == 0
    assert not (runtime / "c.sock").exists()


def test_a_killed_controller_is_followed_at_once_by_the_next_reign(url: str, runtime: Path, started: list[Run]) -> None:
    port = free_port()
    for expected in (1, 2):
        started.append(Run(url, runtime / "c.sock", port))
        until(lambda: started[-1].health() == 200, timeout_s=6, what="health")
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT epoch FROM controller.leader").fetchone() == (expected,)
        started[-1].end(signal.SIGKILL)


def test_a_second_controller_on_one_socket_and_one_on_another_do_not_lead(
    url: str, runtime: Path, started: list[Run]
) -> None:
    started.append(Run(url, runtime / "c.sock", free_port()))
    until(lambda: started[0].health() == 200, what="health")
    started.append(Run(url, runtime / "c.sock", free_port()))
    assert started[1].process.wait(timeout=10) == 3
    assert started[1].process.stdout is not None
    assert started[1].process.stdout.read() == b"cluster.port_taken\n"
    started.append(Run(url, runtime / "d.sock", free_port()))
    until(lambda: started[2].health() == 503, what="the standby")
    assert started[0].end(signal.SIGTERM) == 0
    until(lambda: started[2].health() == 200, timeout_s=6, what="the standby's reign")


def test_it_ends_on_sigterm_even_while_it_waits_for_a_database(runtime: Path, started: list[Run]) -> None:
    started.append(Run("postgresql://x@/x?host=/nonexistent", runtime / "c.sock", free_port()))
    until(lambda: started[0].health() == 503, what="an answer")
    assert started[0].end(signal.SIGTERM) == 0
