"""Processes as facts, on real processes."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.infra import processes
from core.infra.processes import ProcessMark
from tests.waiting import until

ROOT = Path(__file__).parents[2]
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


def seen_from(program: str, *prefix: str) -> "subprocess.CompletedProcess[str]":
    """Run `program` where pid 1 is a stranger's or where we have nothing left to look with."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=20,
        check=False,
    )


def test_a_process_hidden_by_hidepid_is_none_of_ours() -> None:
    program = """
        import os
        from core.infra import processes
        ours = processes.mark(os.getpid())
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            open("/proc/1/stat")
            print("nothing is hidden here")
        except PermissionError:
            print(processes.mark(1), processes.family(frozenset({1, ours.pid})) == [ours])
    """
    hidden = ("unshare", "-m", "sh", "-c", 'mount -t proc -o hidepid=1 proc /proc || exit 99; exec "$@"', "sh")
    try:
        done = seen_from(program, *hidden)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip("mounting /proc takes more rights than there are here")
    assert (done.stdout, done.stderr) == ("None True\n", "")


def test_nobody_is_thought_dead_for_want_of_file_handles() -> None:
    program = """
        import os, resource
        from core.infra import processes
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        try:
            print(processes.mark(os.getpid()))
        except OSError as error:
            print(error.strerror)
    """
    assert seen_from(program).stdout == "Too many open files\n"
