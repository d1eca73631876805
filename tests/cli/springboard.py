"""A process that has imported the CLI once and forks a real process for each run: 10 ms instead of 160.

Started as a program with one end of a SOCK_SEQPACKET pair. A request is one JSON message (`argv`, `env`) with four file
descriptors: standard input, output, error, and a pipe on which the exit code is written. Only the short runs of the
tests come this way; runs on a terminal, interrupted runs and those that look at imports start Python anew.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback


def serve(line: socket.socket) -> None:
    """Fork a run for each request until the other end is closed."""
    from typer import _adapters  # noqa: F401 - what every parsed option would import

    from cli.main import main

    while True:
        message, fds, _, _ = socket.recv_fds(line, 65536, 4)
        if not message:
            return
        if os.fork() == 0:
            _watch(json.loads(message), fds, main)
        for fd in fds:
            os.close(fd)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _watch(request: dict, fds: list[int], main) -> None:
    """Fork the run, wait for it and report its exit code; never return."""
    child = os.fork()
    if child == 0:
        _run(request, fds, main)
    for fd in fds[:3]:
        os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(fds[3], str(code).encode())
    os._exit(0)


def _run(request: dict, fds: list[int], main) -> None:
    """Become `slice`: its descriptors, environment and arguments; never return."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, fd in enumerate(fds[:3]):
            os.dup2(fd, number)
        os.closerange(3, 64)
        os.environ.clear()
        os.environ.update(request["env"])
        time.tzset()
        sys.argv = ["slice", *request["argv"]]
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of this process
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of this process
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of this process
        code = main()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
