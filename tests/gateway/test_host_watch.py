"""What the host takes for lost: only what is away for long enough, and never a door that is merely busy."""

import socket
from io import StringIO
from pathlib import Path

from core.infra.logs import Log
from gateway.serve_host import Look, is_listening, missing
from tests.gateway.conftest import MovableClock, door_config


def test_a_part_is_lost_only_after_being_away_without_a_break_and_its_going_is_said_once() -> None:
    clock, logged, there = MovableClock(), StringIO(), {"is": True}
    log = Log("door-host", clock, logged)
    look = Look(what="HAProxy", is_there=lambda: there["is"], lost_after_s=8.0, seen_at=clock.monotonic())
    for is_there, seconds, lost in (
        (True, 20, []),  # seen again after a long look elsewhere
        (False, 7, []),
        (True, 1, []),
        (False, 7, []),
        (False, 0.5, []),
        (False, 1, ["HAProxy"]),
    ):
        there["is"] = is_there
        clock.ahead_s += seconds
        assert missing([look], clock, log) == lost
    assert logged.getvalue().count("door_part_missing") == 2
    assert logged.getvalue().count("door_part_back") == 1


def test_a_port_is_refused_when_nobody_listens_but_not_when_its_owner_is_too_busy_to_accept(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        config = door_config(tmp_path, port=busy.getsockname()[1])
        assert not is_listening(config)
        busy.listen(0)
        queued = [socket.socket() for _ in range(3)]  # more than the queue holds, and nobody accepts
        for one in queued:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", config.port))
        assert is_listening(config)
        for one in queued:
            one.close()
