"""Which part of an observation is worth a reconcile pass: pure.

Progress, memory and countdowns change all the time and change no decision; they stay in memory for the admin API.
"""

from dataclasses import replace

from controller.exchange import EngineFact, Observation
from core.states import InstallState

_USED_STEP_S = 3600
"""When a file was last used matters by the hour: it decides what is thrown away after a day."""


def significant(observation: Observation) -> Observation:
    """Return `observation` without what changes no decision."""
    return replace(
        observation,
        replicas=tuple(
            replace(one, memory_bytes=0, retry_in_s=0.0) if one.memory_bytes or one.retry_in_s else one
            for one in observation.replicas
        ),
        engines=tuple(_without_steps(one) for one in observation.engines),
        files=tuple(
            replace(one, bytes_done=0, bytes_total=0, used_unix_s=one.used_unix_s // _USED_STEP_S)
            for one in observation.files
        ),
    )


def _without_steps(fact: EngineFact) -> EngineFact:
    """Return `fact` without the steps of installs that go on: each line of pip would be a pass."""
    installs = tuple(replace(one, message="") if one.state is InstallState.INSTALLING else one for one in fact.installs)
    return replace(fact, installs=installs)
