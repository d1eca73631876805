"""How each thing looks in the admin API: pure functions from rows and live state to the objects of docs/admin-api.md.

Instants become ISO 8601 in UTC, sizes stay bytes. Nothing here reads or decides.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from controller.api import departures
from controller.api.seeing import Seen
from controller.deployments.model import Deployment, Replica
from controller.deployments.waiting import Block, block_of, is_serving, standing
from controller.exchange import ReplicaReport
from controller.fleet.model import NodeRow
from controller.identity.model import ApiKey
from controller.ledger.model import Event
from controller.routes.model import DoorNow, Route
from controller.secrets.model import SecretFacts
from core.ids import NodeId, ReplicaId
from core.states import OCCUPYING, Desired, ReplicaState

Json = dict[str, Any]


def instant(value: datetime | None) -> str | None:
    """Return `value` as ISO 8601 in UTC, to the millisecond."""
    if value is None:
        return None
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def deployment(row: Deployment, seen: Seen) -> Json:
    """Return one deployment with how it stands now."""
    refusal = next((one for one in seen.picture.refusals if one.deployment_id == row.deployment_id), None)
    sights = seen.sights(row.deployment_id)
    standing_now = standing(row, sights, refusal)
    shown = None
    if refusal is not None:
        shown = {
            "code": refusal.code,
            "message": refusal.message,
            "hint": refusal.hint,
            "nodes": [dict(node) for node in refusal.nodes],
        }
    return {
        "name": row.name,
        "model": row.model,
        "version": row.version,
        "engine": row.engine,
        "engine_version": row.engine_version,
        "settings": dict(row.settings),
        "runtime": row.runtime,
        "image": row.image,
        "node": row.node_name,
        "secret": row.secret_name,
        "replicas": row.replicas,
        "ready_replicas": standing_now.ready_replicas,
        "current_replicas": sum(
            1 for one in sights if is_serving(one) and one.replica.spec_generation == row.spec_generation
        ),
        "generation": row.generation,
        "resource_version": row.generation,
        "requires": list(row.requires),
        "is_enabled": row.is_enabled,
        "disabled_answer": row.disabled_answer,
        "is_deleting": row.is_deleting,
        "created_at": instant(row.created_at),
        "updated_at": instant(row.updated_at),
        "footprint": dict(row.footprint),
        "state": standing_now.state,
        "waiting": standing_now.waiting,
        "refusal": shown,
        "blocked": blocked(standing_now.block),
    }


def blocked(block: Block | None) -> Json | None:
    """Return what keeps replicas that are to end from vanishing, or None when nothing does."""
    if block is None:
        return None
    return {"code": block.code, "message": block.message, "hint": block.hint, "nodes": list(block.nodes)}


def replica(row: Replica, seen: Seen) -> Json:
    """Return one replica; memory and countdown are the node's last words."""
    report: ReplicaReport | None = seen.report(row)
    owner = next(one for one in seen.picture.deployments if one.deployment_id == row.deployment_id)
    node = seen.live.get(NodeId(row.node_id))
    return {
        "id": row.replica_id,
        "deployment": owner.name,
        "model": owner.model,
        "version": row.version,
        "node": node.name if node else row.node_id,
        "engine": row.engine,
        "engine_version": row.engine_version,
        "state": row.state,
        "desired": row.desired,
        "leaving": departures.leaving(row, seen),
        "move_failure": dict(row.move_failure) or None,
        "blocked": blocked(block_of([seen.sight(row)])) if row.desired != Desired.RUN.value else None,
        "incarnation": row.incarnation,
        "restarts": row.restarts,
        "pid": row.pid,
        "address": row.base_url or (f"{row.host}:{row.port}" if row.port else ""),
        "runtime": row.runtime,
        "image": row.image,
        "devices": [{"id": device, "bytes": count} for device, count in sorted(row.promises.items())],
        "memory_bytes": report.memory_bytes if report else 0,
        "load_s": row.load_s,
        "code": row.code,
        "message": row.message,
        "log_tail": list(row.log_tail),
        "retry_in_s": report.retry_in_s if report else 0,
        "in_flight": seen.in_flight.get(ReplicaId(row.replica_id), 0),
        "created_at": instant(row.created_at),
        "state_since": instant(row.state_since),
    }


def node(row: NodeRow, seen: Seen, certificate_expires_at: datetime | None = None) -> Json:
    """Return one node with its devices as they are now."""
    now = seen.live[NodeId(row.node_id)]
    promised: dict[str, int] = {}
    for one in seen.picture.replicas:
        if one.node_id == row.node_id and ReplicaState(one.state) in OCCUPYING:
            for device, count in one.promises.items():
                promised[device] = promised.get(device, 0) + int(count)
    return {
        "id": row.node_id,
        "name": row.name,
        "state": now.state.value,
        "is_approved": row.is_approved,
        "joined_at": instant(row.joined_at),
        "is_cordoned": row.is_cordoned,
        "drain": departures.drain(row, seen, since=instant(row.drain_since)),
        "replicas": sum(1 for one in seen.picture.replicas if one.node_id == row.node_id),
        "certificate_expires_at": instant(certificate_expires_at),
        "last_seen_s_ago": round(now.silent_s, 1) if now.is_heard else None,
        "agent_version": row.agent_version,
        "protocol": now.protocol,
        "hostname": row.hostname,
        "system": row.system,
        "machine": row.machine,
        "cpu_count": row.cpu_count,
        "memory_bytes": row.memory_bytes,
        "disk_total_bytes": row.disk_total_bytes,
        "disk_free_bytes": now.disk_free_bytes,
        "labels": dict(row.labels),
        "measured_s_ago": round(now.measured_s, 1) if now.measured_s is not None else None,
        "devices": [
            {
                "id": device.device_id,
                "kind": device.kind.value,
                "name": device.name,
                "total_bytes": device.total_bytes,
                "free_bytes": device.free_bytes,
                "promised_bytes": promised.get(device.device_id, 0),
                "utilisation": device.utilisation,
                "temperature_c": device.temperature_c,
                "power_w": device.power_w,
                "is_simulated": device.is_simulated,
            }
            for device in now.devices
        ],
        "engines": [_engine(fact) for fact in row.engines],
        "generation": row.generation,
        "applied_generation": now.applied_generation,
        "session_epoch": row.session_epoch,
    }


def _engine(fact: Mapping[str, Any]) -> Json:
    fields = ("engine", "is_usable", "reason", "device_kinds", "installed_versions")
    return {field: fact[field] for field in fields}


def key(row: ApiKey) -> Json:
    """Return one key without its secret."""
    return {
        "kid": row.kid,
        "name": row.name,
        "project": row.project,
        "created_at": instant(row.created_at),
        "expires_at": instant(row.expires_at),
        "revoked_at": instant(row.revoked_at),
    }


def secret(row: SecretFacts) -> Json:
    """Return what may be shown of one secret."""
    return {
        "name": row.name,
        "created_at": instant(row.created_at),
        "used_by": list(row.used_by),
        "is_readable": row.is_readable,
    }


def event(row: Event) -> Json:
    """Return one event."""
    return {
        "seq": row.seq,
        "at": instant(row.at),
        "kind": row.kind,
        "subject_kind": row.subject_kind,
        "subject": row.subject,
        "reason": row.reason,
        "message": row.message,
        "data": dict(row.data),
    }


def route(row: Route) -> Json:
    """Return one route without its engines' keys."""
    return {
        "public_name": row.public_name,
        "deployment": row.deployment,
        "engine": row.engine,
        "endpoints": list(row.endpoints),
        "targets": [target.replica_id for target in row.targets],
        "waiting": row.waiting,
        "disabled": row.disabled,
    }


def door(row: DoorNow) -> Json:
    """Return one door."""
    return {
        "door_id": row.door_id,
        "applied_version": row.applied_version,
        "last_seen_s_ago": round(row.last_seen_s_ago, 1),
        "in_flight": row.in_flight,
    }


def count(ready: int, total: int) -> Json:
    """Return how many of all are ready."""
    return {"ready": ready, "total": total}
