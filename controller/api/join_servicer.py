"""slice.node.v1.NodeJoin: the thin edge between the join port, which anybody may reach, and `Joining`.

Comes in: one call per join. Goes out: a certificate or a refusal, as a value: gRPC's own errors say too little. Texts
are bounded here; what they mean is checked behind it.
"""

from typing import Any

from controller.api import callers, node_orders, node_wire
from controller.api.stage import Stage
from controller.fleet.model import Refuse
from controller.identity.model import JoinWish
from core.errors import Failure, Retry
from core.infra.logs import Log
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc


class JoinServicer(node_pb2_grpc.NodeJoinServicer):
    """Serves machines that are no nodes yet."""

    def __init__(self, *, stage: Stage, log: Log) -> None:
        self._stage = stage
        self._log = log

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinReply:
        """Make the calling machine a node."""
        wish = JoinWish(
            protocol_min=request.protocol_min,
            protocol_max=request.protocol_max,
            token_id=node_wire.text(request.token_id, 80),
            secret=request.token_secret[:200],
            csr_pem=request.csr_pem,
            node_id=node_wire.text(request.node_id, 80),
            node_name=node_wire.text(request.node_name, 80),
            machine_id=node_wire.text(request.machine_id, 200),
            agent_version=node_wire.text(request.agent_version, 80),
            address=callers.address_of(context.peer()),
        )
        try:
            joined = await self._stage.parts().joining.join(wish)
        except Failure as failure:
            self._log.warning("join_refused", code=failure.code, message=failure.message, address=wish.address)
            return pb.JoinReply(reject=node_orders.reject(_refusal(failure)))
        self._log.info("node_joined", node=wish.node_id, name=joined.node_name, address=wish.address)
        return pb.JoinReply(
            cluster_id=joined.cluster_id,
            certificate_pem=joined.certificate_pem,
            authority_pem=joined.authority_pem,
            node_name=joined.node_name,
            is_approved=joined.is_approved,
        )


def _refusal(failure: Failure) -> Refuse:
    return Refuse(
        code=failure.code,
        message=failure.message,
        hint=failure.hint,
        is_fatal=failure.retry is Retry.NEVER,
        retry_after_ms=int((failure.retry_after_s or 1.0) * 1000),
    )
