"""Which part of an observation is worth a reconcile pass: pure.

Progress, memory and countdowns change all the time and change no decision; they stay in memory for the admin API.
"""

from dataclasses import replace

from controller.exchange import Observation


def significant(observation: Observation) -> Observation:
    """Return `observation` without what changes no decision."""
    return replace(
        observation,
        replicas=tuple(replace(one, memory_bytes=0, retry_in_s=0.0) for one in observation.replicas),
        files=tuple(replace(one, bytes_done=0, bytes_total=0) for one in observation.files),
    )
