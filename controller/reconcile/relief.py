"""What leaves a node's store by itself when its disk runs full: pure.

In: the picture and the live nodes. Out: the files to remove. Called by `controller.reconcile.loop`; the commit writes
them. Nothing that a version has goes this way, and nothing that was used within a day.
"""

from collections.abc import Mapping
from datetime import datetime

from controller.fleet.model import NodeNow
from controller.reconcile.picture import Picture
from controller.registry.model import StoredPlace
from controller.registry.stores import collectable
from core.ids import NodeId
from core.states import NodeState

UNUSED_S = 86_400.0
"""How long a file must have been unused: a model that is deleted in the morning may be wanted again in the evening."""


def relief(
    picture: Picture, live: Mapping[NodeId, NodeNow], *, now: datetime, disk_pressure_bytes: int
) -> tuple[StoredPlace, ...]:
    """Return what should leave the stores of ready nodes with less than `disk_pressure_bytes` of free disk.

    A node that reports no free disk at all (0) is one that does not know.
    """
    pressed = {
        node.node_id
        for node in live.values()
        if node.state is NodeState.READY and 0 < node.disk_free_bytes < disk_pressure_bytes
    }
    if not pressed:
        return ()
    found = collectable(picture.stored, picture.pulls, now=now, older_than_s=UNUSED_S)
    return tuple(place for place in found.items if place.node_id in pressed)
