"""What a machine that leaves asks its controller, by its own certificate: it has no operator's key.

Comes in: the block of the node. Goes out: `NodeControl.Leave`, and how far the leaving is. Called by
`cli.joined.leave`.
"""

import grpc

from cli.client import Json
from core.clock import Clock
from core.errors import CODES, Failure, Kind
from core.infra.joined import NodeBlock
from node_agent.dialing import Way
from protos.slice.node.v1 import node_pb2, node_pb2_grpc

_CALL_S = 15.0


async def asked(block: NodeBlock, clock: Clock, *, is_final: bool) -> Json:
    """Return what the controller says to one `Leave`: `is_gone`, and the `remaining` replicas as objects.

    Raises:
        Failure: it cannot be reached, our certificate is no good, or it refuses.
    """
    way = Way(target=block.controller, cluster_id=block.cluster_id, tls_dir=block.tls_dir)
    try:
        async with await way.channel() as channel:
            stub = node_pb2_grpc.NodeControlStub(channel)  # type: ignore[no-untyped-call]  # generated
            reply: node_pb2.LeaveReply = await stub.Leave(node_pb2.LeaveRequest(is_final=is_final), timeout=_CALL_S)
    except grpc.aio.AioRpcError as error:
        raise await way.fault(clock.now()) or _unheard(block, error) from None
    if reply.HasField("reject"):
        code = reply.reject.code if reply.reject.code in CODES else "internal.unexpected"
        raise Failure(code, reply.reject.message, hint=reply.reject.hint)
    remaining = [
        {"id": one.replica_id, "deployment": one.deployment, "waiting": one.waiting, "is_stuck": one.is_stuck}
        for one in reply.remaining
    ]
    return {"name": block.node_name, "is_gone": reply.is_gone, "remaining": remaining}


async def gone(block: NodeBlock, clock: Clock, attempts: int) -> None:
    """Have the node forgotten; asks up to `attempts` times when an answer is lost, since asking twice does no harm.

    Raises:
        Failure: as `asked`.
    """
    for attempt in range(attempts):
        try:
            await asked(block, clock, is_final=True)
        except Failure as failure:
            if failure.kind is not Kind.UNAVAILABLE or attempt == attempts - 1:
                raise
        else:
            return


def _unheard(block: NodeBlock, error: grpc.aio.AioRpcError) -> Failure:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Failure(
            "node.protocol_too_old",
            f"the controller at {block.controller} is of a release that nodes cannot leave by themselves",
            hint=f"on its machine: `slice node drain {block.node_name} --wait`, then forget it there",
        )
    return Failure(
        "controller.unreachable",
        f"the controller at {block.controller} does not answer: {error.code().name.lower()}",
        hint="does it run, and does a firewall let this machine reach that port?",
    )
