"""The spool on a real disk: whole rows, oldest first, one owner a file, and a bound."""

import stat
import subprocess
import sys
from pathlib import Path

from gateway.usage.spool import ROWS_PER_FILE, Spool
from protos.slice.routes.v1 import routes_pb2

NOW = 1_700_000_000_000_000


def rows(*ids: str) -> list[routes_pb2.UsageRow]:
    return [routes_pb2.UsageRow(row_id=one, public_name="é" * 20) for one in ids]


def delivered(spool: Spool) -> list[tuple[str, list[str]]]:
    found = []
    while taken := spool.take():
        found.append((taken.door_id, [row.row_id for row in taken.rows]))
        spool.done(taken)
        spool.release(taken)
    return found


def test_rows_come_back_in_order_and_leave_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "usage", door_id="door-1")
    assert spool.append(rows("a", "b"), unix_us=NOW) == 2
    assert spool.append(rows("c"), unix_us=NOW + 1) == 1
    assert delivered(spool) == [("door-1", ["a", "b", "c"])]
    assert list((tmp_path / "usage").iterdir()) == []


def test_the_files_are_ours_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "usage", door_id="door-1")
    spool.append(rows("a"), unix_us=NOW)
    (file,) = (tmp_path / "usage").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "usage").stat().st_mode) == 0o700


def test_a_file_that_was_not_delivered_comes_again_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path, door_id="door-1")
    spool.append(rows("a"), unix_us=NOW)
    taken = spool.take()
    assert taken is not None
    spool.release(taken)
    spool.append(rows("b"), unix_us=NOW + 1)
    assert delivered(spool) == [("door-1", ["a"]), ("door-1", ["b"])]


def test_many_tries_while_the_controller_is_away_leave_few_files(tmp_path: Path) -> None:
    spool = Spool(tmp_path, door_id="door-1")
    for number in range(ROWS_PER_FILE):
        spool.append(rows(str(number)), unix_us=NOW + number)
        taken = spool.take()
        assert taken is not None
        spool.release(taken)
    assert len(list(tmp_path.iterdir())) <= 3
    assert sum(len(ids) for _, ids in delivered(spool)) == ROWS_PER_FILE


def test_a_door_takes_what_a_dead_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    living = Spool(tmp_path, door_id="door-living")
    living.append(rows("mine"), unix_us=NOW)
    script = (
        "import os, sys, pathlib\n"
        "from gateway.usage.spool import Spool\n"
        "from protos.slice.routes.v1 import routes_pb2\n"
        "spool = Spool(pathlib.Path(sys.argv[1]), door_id='door-dead')\n"
        "spool.append([routes_pb2.UsageRow(row_id='left')], unix_us=1)\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    assert delivered(Spool(tmp_path, door_id="door-next")) == [("door-dead", ["left"])]
    assert delivered(living) == [("door-living", ["mine"])]


def test_a_row_that_its_door_did_not_finish_is_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path, door_id="door-1")
    spool.append(rows("a", "b"), unix_us=NOW)
    spool.close()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        taken = spool.take()
        assert taken is not None
        assert [row.row_id for row in taken.rows] == ["a", "b"][: 2 * size // len(whole)]
        spool.release(taken)


def test_a_full_directory_keeps_what_came_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path, door_id="door-1", max_bytes=200)
    kept = [spool.append(rows(str(number)), unix_us=NOW + number) for number in range(10)]
    assert kept[0] == 1
    assert kept[-1] == 0
    assert kept == sorted(kept, reverse=True)
    assert [ids for _, ids in delivered(spool)] == [[str(number) for number in range(sum(kept))]]
    assert spool.append(rows("later"), unix_us=NOW) == 1
