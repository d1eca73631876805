"""Processes as facts, on real processes."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from core.infra import processes
from core.infra.processes import ProcessMark
from tests.waiting import until

RENAMED = "import ctypes, signal; ctypes.CDLL(None).prctl(15, b') \\xff(Z'); print('ready', flush=True); signal.pause()"


@pytest.fixture
def renamed() -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose name is no UTF-8 and looks like the end of its own name."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", RENAMED], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_a_process_may_name_itself_with_any_bytes(renamed: "subprocess.Popen[bytes]") -> None:
    found = processes.mark(renamed.pid)
    assert found is not None
    assert processes.is_alive(found)
    assert processes.family(frozenset({renamed.pid})) == [found]


def test_a_pid_of_another_start_time_is_another_process(renamed: "subprocess.Popen[bytes]") -> None:
    found = processes.mark(renamed.pid)
    assert found is not None
    assert not processes.is_alive(ProcessMark(pid=found.pid, start_ticks=found.start_ticks + 1))


def test_a_zombie_counts_as_gone(renamed: "subprocess.Popen[bytes]") -> None:
    renamed.kill()
    until(lambda: processes.mark(renamed.pid) is None, 5.0)
