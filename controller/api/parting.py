"""A node that leaves by itself: `NodeControl.Leave`, from who asks to what it is told.

Called by `controller.api.node_servicer`. A node may ask for nobody's end but its own; what it asks twice is done once.
"""

from controller.api import callers, departures
from controller.api.stage import Parts
from core.errors import Failure
from core.ids import NodeId
from core.infra.certificates import Holder
from protos.slice.node.v1 import node_pb2 as pb


async def parted(parts: Parts, holder: Holder | None, *, is_final: bool) -> pb.LeaveReply:
    """Drain the node that asks, or forget it when `is_final`; return how far its leaving is.

    1. On the unix socket: the controller's own node never leaves.
    2. Nobody knows the node: it has left, or was forgotten. Its certificate is revoked by then; this much it is told.
    3. Another certificate took the place of this one: whoever has that one may ask.

    Raises:
        Failure: `node.in_use` (1), `node.certificate_invalid` (3), `storage.unavailable`.
    """
    if holder is None:  # 1
        raise Failure(
            "node.in_use", "the controller's own machine does not leave its cluster", hint="`slice down` stops it"
        )
    node_id = NodeId(holder.identity.name)
    if parts.certificates.is_revoked(holder.serial):
        if await parts.leaving.is_known(node_id):  # 3
            raise callers.revoked(holder)
        return pb.LeaveReply(is_gone=True)  # 2
    if is_final:
        await parts.leaving.leave(node_id)
        return pb.LeaveReply(is_gone=True)
    if not await parts.leaving.drain_itself(node_id):  # 2
        return pb.LeaveReply(is_gone=True)
    seen = await parts.seen()
    return pb.LeaveReply(
        remaining=[
            pb.Remaining(
                replica_id=one.replica_id,
                deployment=one.deployment,
                waiting=one.waiting,
                is_stuck=one.is_stuck,
            )
            for one in departures.remaining(node_id, seen)
        ]
    )
