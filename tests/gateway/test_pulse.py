"""Who is asked when a machine is silent, and what an answer, or none, means for the requests that wait for it."""

from dataclasses import dataclass, field

import pytest

from gateway.places import Plane
from gateway.pulse import SILENT_S, TRIES, Pulse

FAR = Plane(node_id="nod_a", host="10.0.0.2", port=7090)
OTHER = Plane(node_id="nod_b", host="10.0.0.3", port=7090)


@dataclass(eq=False)
class Waiting:
    """A request that waits for a word."""

    sent_at: float
    heard_at: float = 0.0
    lost: list[str] = field(default_factory=list)

    def lose(self, reason: str) -> None:
        self.lost.append(reason)


@dataclass
class Machines:
    """Machines that answer or do not; `hears` is what begins to speak while it is asked."""

    dead: set[Plane] = field(default_factory=set)
    asked: list[Plane] = field(default_factory=list)
    now: float = 100.0
    hears: Waiting | None = None

    def __post_init__(self) -> None:
        self.pulse = Pulse(self._answers, lambda: self.now)

    async def _answers(self, plane: Plane) -> bool:
        self.asked.append(plane)
        self.now += 1.0
        if self.hears is not None:
            self.hears.heard_at = self.now
        return plane not in self.dead

    def request(self, plane: Plane = FAR) -> Waiting:
        waiting = Waiting(sent_at=self.now)
        self.pulse.begin(plane, waiting)
        return waiting


@pytest.fixture
def machines() -> Machines:
    return Machines()


async def test_a_machine_is_asked_only_once_it_owes_a_word_for_long(machines: Machines) -> None:
    first = machines.request()
    machines.now += SILENT_S - 0.5
    await machines.pulse.look()
    assert machines.asked == []
    first.heard_at = machines.now
    machines.now += SILENT_S - 0.5
    machines.request()  # what is sent is no word of the machine's
    await machines.pulse.look()
    assert machines.asked == []
    machines.now += 0.5
    await machines.pulse.look()
    assert machines.asked == [FAR]


async def test_requests_for_a_machine_that_answers_nothing_are_ended_and_nobody_elses(machines: Machines) -> None:
    machines.dead = {FAR}
    waiting, other = machines.request(), machines.request(OTHER)
    machines.now += SILENT_S
    await machines.pulse.look()
    assert len(waiting.lost) == 1
    assert other.lost == []
    assert machines.asked.count(FAR) == TRIES


async def test_an_answer_gives_a_silent_engine_time_until_it_is_asked_again(machines: Machines) -> None:
    waiting = machines.request()
    for count in range(1, 4):
        machines.now += SILENT_S
        await machines.pulse.look()
        await machines.pulse.look()
        assert machines.asked == [FAR] * count
    assert waiting.lost == []
    machines.dead = {FAR}
    machines.now += SILENT_S
    await machines.pulse.look()
    assert len(waiting.lost) == 1


async def test_a_machine_that_speaks_while_it_is_asked_lives(machines: Machines) -> None:
    machines.dead = {FAR}
    machines.hears, waiting = machines.request(), machines.request()
    machines.now += SILENT_S
    await machines.pulse.look()
    assert (machines.hears.lost, waiting.lost) == ([], [])


async def test_a_request_that_was_sent_while_it_is_asked_has_its_own_time(machines: Machines) -> None:
    machines.dead = {FAR}
    machines.request()
    machines.now += SILENT_S
    late = Waiting(sent_at=machines.now + 0.5)
    machines.pulse.begin(FAR, late)
    await machines.pulse.look()
    assert late.lost == []


async def test_nothing_at_work_asks_nobody(machines: Machines) -> None:
    waiting = machines.request()
    machines.pulse.end(FAR, waiting)
    machines.pulse.end(FAR, waiting)
    machines.now += 10 * SILENT_S
    await machines.pulse.look()
    assert machines.asked == []
