"""Starting and ending clusters: bad machines, interruptions, neighbours."""

import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.system.cluster import Running, a_cluster, kill, leftovers
from tests.waiting import until

pytestmark = pytest.mark.system


def test_a_taken_port_is_named_with_its_holder_and_the_flag() -> None:
    with a_cluster() as wanted, socket.socket() as holder:
        holder.bind(("127.0.0.1", wanted.port))
        holder.listen()
        done = wanted.slice("up", "--port", str(wanted.port), check=False)
    assert done.returncode == 5
    assert f"port {wanted.port}" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert "--port" in done.stderr


def test_a_data_directory_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    done = Running(data_dir=place, port=1).slice("up", check=False)
    assert done.returncode == 4
    assert str(place) in done.stderr
    assert place.read_text() == "mine"


def test_an_unknown_key_in_the_settings_file_stops_the_start_and_suggests_the_right_one() -> None:
    with a_cluster() as wanted:
        wanted.data_dir.mkdir(mode=0o700)
        (wanted.data_dir / "slice.toml").write_text("prot = 9000\n")
        done = wanted.slice("up", check=False)
        assert done.returncode == 2
        assert "did you mean 'port'?" in done.stderr


def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir(mode=0o755)
    (place / "letter.txt").write_text("dear")
    done = Running(data_dir=place, port=1).slice("up", check=False)
    assert done.returncode == 4
    assert "holds other files" in done.stderr
    assert place.stat().st_mode & 0o777 == 0o755


def test_a_wrong_database_url_is_told_at_once_and_not_remembered(tmp_path: Path) -> None:
    wanted = Running(data_dir=tmp_path / "data", port=1)
    done = wanted.slice("up", "--database-url", "postgresql://127.0.0.1:1/x", check=False, timeout_s=30)
    assert done.returncode == 6
    assert "--database-url" in done.stderr
    assert not (wanted.data_dir / "flags.json").exists()


def test_down_at_any_moment_of_up_ends_what_up_began_and_of_two_ups_one_follows_the_other() -> None:
    with a_cluster() as cluster:
        first = cluster.start("up", "--port", str(cluster.port), "--starter-model", "")
        second = cluster.start("up", "--port", str(cluster.port), "--starter-model", "")
        for asked in (first, second):
            _, said = asked.communicate(timeout=120)
            assert asked.returncode == 0, said
        cluster.slice("down")
        for delay_s in (0.0, 0.1, 0.4, 1.5):
            asked = cluster.start("up")
            threading.Event().wait(delay_s)
            cluster.slice("down")
            _, said = asked.communicate(timeout=60)
            if asked.returncode == 0:  # it began only after `down` had looked
                cluster.slice("down")
            until(lambda: not leftovers(cluster.data_dir, cluster.block), 20.0, "nothing to be left")


def test_a_copied_data_directory_neither_adopts_nor_ends_the_original(running: Running, tmp_path: Path) -> None:
    copy = Running(data_dir=tmp_path / "copy", port=1)
    copy.data_dir.mkdir(mode=0o700)
    for name in ("cluster.json", "parts", "secrets"):
        source = running.data_dir / name
        shutil.copytree(source, copy.data_dir / name) if source.is_dir() else shutil.copy(source, copy.data_dir)
    assert "copied or moved" in copy.slice("down").stdout
    assert running.client().models.list().data


def test_down_where_nothing_ever_ran_says_so(tmp_path: Path) -> None:
    done = Running(data_dir=tmp_path / "none", port=1).slice("down")
    assert "nothing" in done.stdout


def test_a_database_of_a_newer_schema_is_refused_and_left_alone() -> None:
    with a_cluster() as cluster:
        cluster.up("--starter-model", "")
        import psycopg

        url = cluster.block.secret_file("database_url").read_text()
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO controller.schema_migration (number, name, sha256) VALUES (9999, 'later', 'x')"
            )
        cluster.slice("down")
        done = cluster.slice("up", check=False)
        assert done.returncode == 5, done.stderr
        assert "storage.schema_newer" in done.stderr


def test_two_clusters_live_side_by_side_and_an_interrupted_up_is_followed_by_the_next(running: Running) -> None:
    with a_cluster() as second:
        asked = second.start("up", "--port", str(second.port), "--starter-model", "")
        said: list[str] = []
        assert asked.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(iter(asked.stderr.readline, "")))  # type: ignore[union-attr]
        reader.start()
        until(lambda: said, 20.0, "the first step")
        kill(asked.pid, signal.SIGINT)
        assert asked.wait(20) == 130
        reader.join()
        asked.stderr.close()
        assert asked.stdout is not None
        asked.stdout.close()
        assert "goes on starting" in "".join(said)
        second.up()
        assert running.client().models.list().data
        assert second.client().models.list().data == []
        assert second.block.runtime_dir != running.block.runtime_dir
    assert running.client().models.list().data, "ending one cluster leaves its neighbour alone"
