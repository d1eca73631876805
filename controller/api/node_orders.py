"""What the controller tells a node: the fleet's values as protobuf of slice.node.v1.

Called by the gRPC edge; decides nothing.
"""

import json
from collections.abc import Callable

from controller.fleet.model import (
    Ack,
    ControllerMessage,
    DesiredSet,
    EngineOrder,
    FileOrder,
    LogAsk,
    Refuse,
    ReplicaOrder,
    Revoked,
    Welcome,
)
from protos.slice.node.v1 import node_pb2 as pb


def render(message: ControllerMessage, key_of: Callable[[ReplicaOrder], str]) -> pb.ControllerMessage:
    """Return `message` as protobuf; `key_of` finds a replica's engine key, which no value of the fleet carries."""
    if isinstance(message, Welcome):
        return pb.ControllerMessage(
            hello_ack=pb.HelloAck(
                leader_epoch=message.leader_epoch,
                session_epoch=message.session_epoch,
                heartbeat_ms=message.heartbeat_ms,
                lease_ms=message.lease_ms,
                fence_ms=message.fence_ms,
                protocol=message.protocol,
                telemetry_ms=message.telemetry_ms,
                redial_ms=message.redial_ms,
            )
        )
    if isinstance(message, Ack):
        return pb.ControllerMessage(heartbeat_ack=pb.HeartbeatAck(sequence=message.sequence))
    if isinstance(message, DesiredSet):
        return pb.ControllerMessage(desired=_desired(message, key_of))
    if isinstance(message, LogAsk):
        return pb.ControllerMessage(
            log_request=pb.LogRequest(
                request_id=message.request_id,
                replica_id=message.replica_id,
                tail_lines=message.tail_lines,
                follow=message.follow,
                cancel=message.is_cancel,
            )
        )
    if isinstance(message, Revoked):
        return pb.ControllerMessage(revoked=pb.Revoked(serials=sorted(message.serials)))
    return pb.ControllerMessage(reject=reject(message))


def reject(refusal: Refuse) -> pb.Reject:
    """Return why a session ends, as protobuf."""
    return pb.Reject(
        code=refusal.code,
        message=refusal.message,
        hint=refusal.hint,
        is_fatal=refusal.is_fatal,
        retry_after_ms=refusal.retry_after_ms,
    )


def _desired(message: DesiredSet, key_of: Callable[[ReplicaOrder], str]) -> pb.Desired:
    return pb.Desired(
        leader_epoch=message.leader_epoch,
        generation=message.generation,
        replicas=[_want(order, key_of(order)) for order in message.replicas],
        files=[_file_want(order) for order in message.files],
        removed_files=list(message.removed_files),
        engines=[_engine_want(order) for order in message.engines],
    )


def _engine_want(order: EngineOrder) -> pb.EngineWant:
    return pb.EngineWant(
        engine=order.engine,
        version=order.version,
        source=order.source,
        is_removed=order.is_removed,
        adopt_url=order.adopt_url,
    )


def _want(order: ReplicaOrder, engine_key: str) -> pb.ReplicaWant:
    return pb.ReplicaWant(
        replica_id=order.replica_id,
        deployment=order.deployment,
        served_name=order.served_name,
        engine=order.engine,
        engine_version=order.engine_version,
        settings_json=json.dumps(order.settings, sort_keys=True),
        files=[_file_want(file) for file in order.files],
        devices=[pb.DevicePromise(device_id=device, bytes=count) for device, count in sorted(order.promises.items())],
        engine_key=engine_key,
        desired=order.desired.value,
        runtime=order.runtime,
        image=order.image,
    )


def _file_want(order: FileOrder) -> pb.FileWant:
    return pb.FileWant(
        want_id=order.want_id,
        source=order.source,
        sha256=order.sha256,
        size_bytes=order.size_bytes,
        is_cancelled=order.is_cancelled,
        path=order.path,
        formats=list(order.formats),
        peers=[pb.Peer(node_id=peer.node_id, host=peer.host, port=peer.port) for peer in order.peers],
    )
