"""The replica's machine, driven through anything by hypothesis: what must hold whatever its engine does."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from core.errors import Failure
from core.states import REPLICA_TRANSITIONS, ReplicaState
from node_agent import lifecycle
from node_agent.replica import Replica, step

events = st.sampled_from(
    [
        lifecycle.Wanted(),
        lifecycle.FilesReady(),
        lifecycle.EngineReady(),
        lifecycle.PreparationFailed(failure=Failure("storage.unavailable", "away")),
        lifecycle.ProbePassed(),
        lifecycle.ProbeFailed(reason="no"),
        lifecycle.Exited(exit_code=1),
        lifecycle.Exited(exit_code=1, is_port_taken=True),
        lifecycle.TimeCame(),
        lifecycle.StopAsked(),
        lifecycle.TreeGone(),
    ]
)
_ALIVE = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNHEALTHY)


class ReplicaLife(RuleBasedStateMachine):
    """Any event in any state, as late or as often as it likes; spawns are answered as their owner answers them."""

    def __init__(self) -> None:
        super().__init__()
        self.replica, self.now, self.is_asked, self.has_stopped = Replica(), 0.0, False, False

    @rule(event=events, seconds=st.sampled_from([0.0, 0.5, 3.0, 130.0, 700.0]))
    def happens(self, event: lifecycle.Happened, seconds: float) -> None:
        self.now += seconds
        self.is_asked |= isinstance(event, lifecycle.StopAsked)
        self._take(event)

    def _take(self, event: lifecycle.Happened) -> None:
        before = self.replica
        found = step(before, event, self.now)
        self.replica = found.replica
        if found.replica.state is not before.state:
            ways = {to for (state, _), to in REPLICA_TRANSITIONS.items() if state is before.state}
            further = {to for (state, _), to in REPLICA_TRANSITIONS.items() if state in ways}
            assert found.replica.state in ways | further
        assert found.replica.incarnation >= before.incarnation
        assert found == step(before, event, self.now), "the same answer for the same question"
        stops = [effect for effect in found.effects if isinstance(effect, lifecycle.StopEngine)]
        assert not stops or isinstance(event, lifecycle.StopAsked), "no kill without an order"
        ends = [effect for effect in found.effects if isinstance(effect, lifecycle.EndEngine)]
        assert not ends or before.state in _ALIVE
        for effect in found.effects:
            if isinstance(effect, lifecycle.Spawn):
                assert effect.incarnation == before.incarnation + 1, "each incarnation is spawned once"
                assert before.state not in _ALIVE, "never two engines of one replica"
                assert not self.is_asked, "what was told to stop starts nothing"
                self._take(lifecycle.Spawned(incarnation=effect.incarnation))


TestReplicaLife = ReplicaLife.TestCase
TestReplicaLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
