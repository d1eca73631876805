"""Short forms of the loops over three machines: the kills that take most with them, and PostgreSQL away for moments."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.many.three import ONE, Three, three_machines
from tests.soak import outage
from tests.soak.cluster_kills import JOINED, KINDS, ClusterLoop, ClusterRound, kind_of
from tests.soak.outage import Outage
from tests.soak.tables import cluster_section, noticed, outage_section

WORST = (
    (ONE, ("supervisor", "controller", "postmaster", "node agent", "door shim")),
    (JOINED, ("supervisor", "node agent")),
    (JOINED, ("node agent", "shim", "plane shim")),
)
KEEPS_ANSWERING = (ONE, ("supervisor", "postmaster"))
_AWAY_S = 14.0
"""Beyond 4H+3 s, when a silent node is lost."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Three]:
    async with three_machines() as found:
        yield found


@pytest.mark.system
@pytest.mark.asyncio(loop_scope="module")
async def test_whatever_part_of_three_machines_is_killed_all_is_well_again_and_nobody_is_an_orphan(
    three: Three,
) -> None:
    loop = ClusterLoop(three, "short")
    await loop.deploy("talk")
    assert set(WORST) <= set(KINDS)
    for number, (where, victims) in enumerate(WORST):
        one = await loop.kill(number, where, victims)
        assert not one.trouble, one
    steady = await loop.kill(len(WORST), *KEEPS_ANSWERING)
    assert not steady.trouble, steady
    assert steady.failed == {}
    assert {"503 storage.unavailable"} >= set(steady.writes_refused), "a write is done or says when to try again"


@pytest.mark.system
@pytest.mark.asyncio(loop_scope="module")
async def test_a_frozen_postgresql_is_noticed_by_writers_alone(three: Three) -> None:
    await outage.deploy(three)
    one = await outage.outage(three, "frozen", _AWAY_S)
    assert noticed(one) == [], one
    await outage.gone(three)


def test_every_block_of_rounds_kills_every_kind_once_and_can_be_repeated() -> None:
    rounds = [kind_of("seed", number) for number in range(2 * len(KINDS))]
    assert rounds == [kind_of("seed", number) for number in range(2 * len(KINDS))]
    assert all(sorted(rounds[at : at + len(KINDS)]) == sorted(KINDS) for at in (0, len(KINDS)))


def test_a_round_that_was_not_well_and_a_late_orphan_are_told() -> None:
    fine = ClusterRound(
        number=0, where=JOINED, victims="shim", orphans_gone_s=1.0, well_s=2.0, longest_gap_s=0.3, answers=10, writes=2
    )
    rounds = [
        fine,
        ClusterRound(number=1, where=JOINED, victims="shim", failed={"cut: stream": 1}, trouble="orphans are left"),
    ]
    table, missed = cluster_section(rounds)
    assert missed == [f"round 1, shim of the {JOINED}: orphans are left"]
    (row,) = table.rows
    assert row[:2] == (f"{JOINED}: shim", "2")
    assert "1 cut: stream" in row


def test_what_should_not_have_been_noticed_of_an_outage_is_told() -> None:
    fine = Outage(
        form="frozen",
        seconds=300.0,
        answers=100,
        failed={},
        longest_gap_s=0.2,
        writes=30,
        writes_refused={"503 storage.unavailable": 30},
        slowest_refusal_s=10.0,
        reads=30,
        reads_refused={"503 storage.unavailable": 30},
        states=["ready"],
        again_s=1.0,
        ready_s=1.0,
    )
    assert noticed(fine) == []
    assert outage_section([fine])[1] == []
    told = Outage(**{**vars(fine), "states": ["lost", "ready"], "writes_refused": {"503 x without Retry-After": 1}})
    assert len(noticed(told)) == 2
