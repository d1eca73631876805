"""What a node obeys: pure comparisons of numbers, each of which the node remembers across its restarts.

Called by `node_agent.supervisor` and `node_agent.session`, and by the simulator. See docs/architecture.md, fences.
"""


def obeys_leader(seen_epoch: int, leader_epoch: int) -> bool:
    """Return whether a node that has seen the reign `seen_epoch` follows a controller of the reign `leader_epoch`."""
    return leader_epoch >= seen_epoch


def applies(*, seen_epoch: int, applied_generation: int, leader_epoch: int, generation: int) -> bool:
    """Return whether a desired set is to be applied: by no former leader, and newer than what is applied."""
    return obeys_leader(seen_epoch, leader_epoch) and generation > applied_generation
