"""A storm of hellos: the pure decision by tables and properties, and 200 real streams by mTLS on small bounds."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from controller.fleet import admission
from controller.fleet.admission import Bounds, ComesAgain, Desk, Waits
from core.errors import CODES
from tests.controller.cluster import Cluster
from tests.controller.remote import Machine, RemoteNode, free_ports, minted
from tests.waiting import until_async

BOUNDS = Bounds(at_once=4, waiting=10, strangers=3, wait_s=1.0)


@pytest.mark.parametrize(
    ("desk", "is_known", "waits"),
    [
        (Desk(), True, True),
        (Desk(), False, True),
        (Desk(known=9), True, True),
        (Desk(known=10), True, False),
        (Desk(known=7, strangers=3), True, False),
        (Desk(strangers=3), True, True),
        (Desk(strangers=3), False, False),
        (Desk(handled=4, known=5, pace=5.0), True, False),
        (Desk(handled=4, known=1, strangers=2, pace=5.0), True, True),
        (Desk(handled=4, known=1, strangers=2, pace=5.0), False, False),
    ],
    ids=[
        "nobody is there",
        "nor before a stranger",
        "the last place",
        "no place",
        "no place because of strangers",
        "strangers leave places to known ones",
        "no place for one more stranger",
        "too many before it",
        "strangers do not count for a known one",
        "all count for a stranger",
    ],
)
def test_a_hello_waits_when_there_is_a_place_and_its_turn_comes_soon(desk: Desk, is_known: bool, waits: bool) -> None:
    after, verdict = admission.knocked(desk, 7.0, is_known=is_known, chance=0.5, bounds=BOUNDS)
    assert isinstance(verdict, Waits) is waits
    assert after.waiting == desk.waiting + waits


def test_those_that_are_sent_away_come_back_one_after_the_other_at_the_pace() -> None:
    desk, times = Desk(handled=4, known=10, pace=100.0), []
    for _ in range(300):
        desk, verdict = admission.knocked(desk, 50.0, is_known=True, chance=0.0, bounds=BOUNDS)
        assert isinstance(verdict, ComesAgain)
        times.append(verdict.after_s)
    assert times[0] == admission.RETRY_LEAST_S
    assert times[100] == pytest.approx(0.14 + 1.0)
    assert times[299] == pytest.approx(0.14 + 2.99)


@given(some.lists(some.floats(0, 1), min_size=1, max_size=400), some.floats(20, 2000), some.integers(0, 10))
def test_nobody_is_sent_away_for_longer_than_a_lease_allows(chances: list[float], pace: float, known: int) -> None:
    desk = Desk(handled=4, known=known, pace=pace)
    for chance in chances:
        desk, verdict = admission.knocked(desk, 0.0, is_known=True, chance=chance, bounds=BOUNDS)
        if isinstance(verdict, ComesAgain):
            assert admission.RETRY_LEAST_S <= verdict.after_s <= admission.RETRY_MOST_S
    assert desk.booked_until <= admission.RETRY_MOST_S + 1.0 / pace


@given(some.lists(some.tuples(some.sampled_from(["known", "stranger", "gone", "take", "done"]), some.floats(0, 1))))
def test_never_more_are_handled_or_wait_than_the_bounds_say(steps: list[tuple[str, float]]) -> None:
    desk, batches = Desk(), []
    for number, (what, chance) in enumerate(steps):
        before = desk
        if what in ("known", "stranger"):
            desk, _ = admission.knocked(desk, float(number), is_known=what == "known", chance=chance, bounds=BOUNDS)
        elif what == "gone" and desk.waiting:
            desk = admission.left(desk, is_known=desk.known > 0)
        elif what == "take":
            desk, known, strangers = admission.taken(desk, BOUNDS)
            batches.append(known + strangers)
            assert strangers == 0 or known == before.known  # no stranger before a known one
        elif what == "done" and batches:
            desk = admission.done(desk, batches.pop(), chance, BOUNDS)
        assert 0 <= desk.handled <= BOUNDS.at_once
        assert desk.known >= 0
        assert 0 <= desk.strangers <= BOUNDS.strangers
        assert desk.waiting <= BOUNDS.waiting
        assert admission.PACE_LEAST <= desk.pace <= admission.PACE_MOST


def test_a_refusal_has_a_code_that_exists_and_is_not_fatal() -> None:
    refusal = admission.refusal(ComesAgain(1.25), Desk(handled=4, known=10))
    assert refusal.code in CODES
    assert (refusal.is_fatal, refusal.retry_after_ms) == (False, 1250)


NODES = 200


async def test_a_storm_on_small_bounds_ends_with_all_admitted_and_never_more_in_handling(
    url: str, runtime: Path
) -> None:
    bounds = Bounds(at_once=3, waiting=20, strangers=5, wait_s=1.0)
    async with Cluster(url, runtime, node_port=free_ports(), heartbeat_s=2.0, bounds=bounds) as cluster:
        await cluster.ready()
        nodes = [
            RemoteNode(
                Machine(
                    authority=runtime / "authority.pem",
                    port=cluster.node_port,
                    node_id=f"nod_{number:03d}",
                    name=f"far-{number:03d}",
                )
            )
            for number in range(NODES)
        ]
        gate = asyncio.Semaphore(8)

        async def join(node: RemoteNode) -> None:
            async with gate:
                reply = await node.machine.join(await minted(cluster))
                assert reply.certificate_pem

        await asyncio.gather(*(join(node) for node in nodes))
        refused = sum(await asyncio.gather(*(_until_welcomed(node) for node in nodes)))
        assert cluster.controller is not None
        reception = cluster.controller.stage.parts().fleet.reception
        try:
            assert refused > 0
            assert 1 < reception.most_at_once <= bounds.at_once
            assert all(node.ack is not None and node.ack.session_epoch == 2 for node in nodes)
        finally:
            await asyncio.gather(*(node.hang_up() for node in nodes))


async def _until_welcomed(node: RemoteNode) -> int:
    """Dial until the node is welcomed, as often as it is told to come again; return how often it was."""
    refusals = 0
    while True:
        node.reject = None
        await node.dial()

        async def is_answered() -> bool:
            return node.ack is not None or node.reject is not None

        await until_async(is_answered, timeout_s=60, what="a welcome or a refusal")
        if node.ack is not None:
            return refusals
        assert node.reject is not None
        assert (node.reject.code, node.reject.is_fatal) == ("node.controller_busy", False)
        refusals += 1
        await node.hang_up()
        await asyncio.sleep(node.reject.retry_after_ms / 1000)  # what a node does that is told so
