"""The short form of the kill loop: every set of victims once."""

import asyncio
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from core.infra import processes
from node_agent import shim_client
from tests import waiting
from tests.node_agent import controllers
from tests.node_agent.nodes import Node
from tests.soak.node_kills import OUT_OF_ROUTING_S, RESTART_S, VICTIMS, KillLoop, Round, Watching, victims_of
from tests.soak.rounds import Rounds
from tests.soak.strays import strays
from tests.soak.tables import node_section

_LOADED = 2.0
"""Tests run beside others; the bars themselves are those of `make soak`."""


WITHOUT_GROUPS = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh")


async def kills(tmp_path: Path, numbers: Iterable[int], under: tuple[str, ...] = ()) -> list[Round]:
    """Return what the rounds `numbers` took; nobody of the node is left after it."""
    node = Node(tmp_path)
    try:
        async with controllers.serving(node.control, Watching()) as controller:
            loop = KillLoop(node, controller, "short", under)
            await loop.begin()
            record = shim_client.read_record(node.data_dir / "replicas" / "rep_one")
            assert record is not None
            assert not under or record.group is None
            rounds = [await loop.round(number) for number in numbers]
    finally:
        await node.close()
    assert strays(node.data_dir) == []
    return rounds


async def test_a_node_survives_kill_9_of_every_part_and_leaves_no_orphan(tmp_path: Path) -> None:
    rounds = await kills(tmp_path, range(len(VICTIMS)))
    assert sorted(one.victims for one in rounds) == sorted(" + ".join(victims) for victims in VICTIMS)
    assert max(one.out_of_routing_s or 0.0 for one in rounds) < OUT_OF_ROUTING_S * _LOADED
    assert max(one.restart_s or 0.0 for one in rounds) < RESTART_S * _LOADED
    assert sum(one.restart_s is not None for one in rounds) == 3


async def test_no_orphan_is_left_where_no_control_group_can_be_made(tmp_path: Path) -> None:
    tried = subprocess.run([*WITHOUT_GROUPS, "true"], capture_output=True, text=True, check=False, timeout=10)
    if tried.returncode:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()}")
    hardest = [number for number in range(len(VICTIMS)) if "shim" in victims_of("short", number)]
    assert len(await kills(tmp_path, hardest, WITHOUT_GROUPS)) == 4


def test_every_block_of_rounds_has_every_set_of_victims_and_can_be_repeated() -> None:
    rounds = [victims_of("seed", number) for number in range(3 * len(VICTIMS))]
    assert rounds == [victims_of("seed", number) for number in range(3 * len(VICTIMS))]
    assert all(sorted(rounds[at : at + 7]) == sorted(VICTIMS) for at in (0, 7, 14))


async def test_a_stray_is_seen_by_its_directory_and_by_its_output(tmp_path: Path) -> None:
    inside = tmp_path / "node"
    inside.mkdir()
    with (inside / "log").open("w") as log:
        by_output = await asyncio.create_subprocess_exec("sleep", "600", stdout=log, start_new_session=True)
    by_place = await asyncio.create_subprocess_exec("sleep", "600", cwd=inside, start_new_session=True)
    other = await asyncio.create_subprocess_exec("sleep", "600", cwd=tmp_path)
    running = (by_output, by_place, other)
    try:
        wanted = {processes.mark(by_output.pid), processes.mark(by_place.pid)}
        waiting.until(lambda: set(strays(inside)) == wanted)
    finally:
        for process in running:
            process.kill()
            await process.wait()
    assert strays(inside) == []


def test_a_run_goes_on_after_the_last_whole_round(tmp_path: Path) -> None:
    kept = Rounds(tmp_path / "made" / "node.jsonl", Round)
    assert kept.done() == []
    whole = Round(number=0, victims="shim", orphans_gone_s=1.5, restart_s=1.0)
    kept.keep([whole])
    with kept.file.open("a") as file:
        file.write('{"number": 1, "vic')
    assert kept.done() == [whole]


def test_a_missed_bar_is_named() -> None:
    rounds = [Round(number=0, victims="shim", orphans_gone_s=61.0, restart_s=1.0)]
    table, missed = node_section(rounds)
    assert [row[1] for row in table.rows] == ["1", "1"]
    assert len(missed) == 1
    assert "61.00 s, the bar is 60 s" in missed[0]
