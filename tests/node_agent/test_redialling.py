"""When a node dials again, on a clock that only its own waits move."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.redialling import SPREAD_S, Redialling, look_s


class Port:
    """A controller's port that refuses from 0 until `back_at`; waits take exactly as long as they say."""

    def __init__(self, *, back_at: float, chance: float = 1.0, again_s: float = 100.0) -> None:
        self.now = 0.0
        self.back_at = back_at
        self.waits: list[float] = []
        self.looks = 0
        self.extended = 0
        self.is_leaving = False
        self._again_s = again_s
        self.redialling = Redialling(
            is_refused=self._is_refused,
            extended=self._extended,
            pause=self._pause,
            is_leaving=lambda: self.is_leaving,
            now=lambda: self.now,
            chance=lambda: chance,
        )

    async def _is_refused(self) -> bool:
        self.looks += 1
        return self.now < self.back_at

    def _extended(self) -> float:
        self.extended += 1
        return self._again_s

    async def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def until_dial(self, wait_s: float = 0.0) -> bool:
        return await self.redialling.rest(wait_s)


async def test_where_somebody_listens_the_back_off_is_waited_for() -> None:
    port = Port(back_at=0.0)
    assert not await port.until_dial(3.0)
    assert (port.waits, port.extended) == ([3.0], 0)


@pytest.mark.parametrize("back_at", [0.3, 1.1, 2.5, 4.0], ids=str)
async def test_a_controller_that_is_started_again_is_dialled_a_quarter_of_a_second_later_at_most(
    back_at: float,
) -> None:
    port = Port(back_at=back_at)
    assert await port.until_dial(0.2)
    assert back_at <= port.now <= back_at + 0.4
    assert max(port.waits) <= max(SPREAD_S, back_at / 10)


@given(back_at=st.floats(0.01, 600.0), chance=st.floats(0.0, 1.0))
def test_whoever_comes_late_is_late_by_a_tenth_and_by_five_seconds_at_most(back_at: float, chance: float) -> None:
    port = Port(back_at=back_at, chance=max(chance, 0.05))

    async def dial_until_it_is_back() -> None:
        while not await port.until_dial(5.0):
            assert port.now < back_at

    asyncio.run(dial_until_it_is_back())
    assert back_at <= port.now <= back_at + min(5.0, max(SPREAD_S, back_at / 10)) + 0.01


async def test_a_controller_that_stays_away_is_dialled_all_the_same_every_five_seconds() -> None:
    port = Port(back_at=1e9)
    for _ in range(4):
        before = port.now
        assert not await port.until_dial(0.2)
        assert 5.0 <= port.now - before <= 10.0


async def test_a_pause_that_was_asked_for_is_kept_while_nobody_listens() -> None:
    port = Port(back_at=1e9)
    assert not await port.until_dial(30.0)
    assert port.now >= 30.0


async def test_while_nobody_reigns_the_lease_is_renewed_at_each_look_and_as_often_as_it_needs() -> None:
    port = Port(back_at=4.0, again_s=0.1)
    assert await port.until_dial()
    assert port.extended == len(port.waits) == port.looks - 1
    assert max(port.waits) <= 0.1


async def test_the_nodes_of_a_large_cluster_come_back_spread_over_what_their_controller_said() -> None:
    port = Port(back_at=0.5, chance=0.7)
    port.redialling.opened(4.0)
    assert await port.until_dial()
    assert port.waits == [pytest.approx(2.8)]


async def test_a_node_that_leaves_looks_no_more() -> None:
    port = Port(back_at=1e9)
    port.is_leaving = True
    assert not await port.until_dial(30.0)
    assert port.waits == []


async def test_a_session_that_was_open_begins_again_with_short_waits() -> None:
    port = Port(back_at=60.0)
    while not await port.until_dial():
        pass
    assert max(port.waits) > 2.0
    port.redialling.opened(0.0)
    port.waits, port.back_at = [], port.now + 2.0
    assert await port.until_dial()
    assert max(port.waits) <= SPREAD_S


def test_no_look_is_hot() -> None:
    assert look_s(0.0, SPREAD_S, 0.0) == 0.01
