"""The SQL of membership. Called by `controller.fleet.members` alone."""

from psycopg import errors as pg
from psycopg.types.json import Jsonb

from controller.exchange import Newcomer
from core.infra import postgres

# What it is, it says at its first hello; until then it is offline. Who joins again needs no second approval.
_ADMIT = """
INSERT INTO controller.node (node_id, name, machine_id, boot_id, agent_version, hostname, system, machine, cpu_count,
    memory_bytes, disk_total_bytes, labels, engines, state, session_epoch, is_approved, joined_at, given_labels)
VALUES (%(node_id)s, %(name)s, %(machine_id)s, '', %(agent_version)s, '', '', '', 0, 0, 0, '{}', '[]', 'offline', 1,
    %(is_approved)s, now(), %(labels)s)
ON CONFLICT (node_id) DO UPDATE SET name = excluded.name, machine_id = excluded.machine_id, joined_at = now(),
    given_labels = excluded.given_labels, is_approved = node.is_approved OR excluded.is_approved
"""
_APPROVE = "UPDATE controller.node SET is_approved = true WHERE node_id = %(node_id)s AND NOT is_approved"


async def admit(connection: postgres.Connection, newcomer: Newcomer) -> bool:
    """Write a node that has joined; return False when another one has its name."""
    row = {
        "node_id": newcomer.node_id,
        "name": newcomer.name,
        "machine_id": newcomer.machine_id,
        "agent_version": newcomer.agent_version,
        "labels": Jsonb(dict(newcomer.labels)),
        "is_approved": newcomer.is_approved,
    }
    try:
        async with connection.transaction():
            await postgres.execute(connection, _ADMIT, row)
    except pg.UniqueViolation:
        return False
    return True


async def approve(connection: postgres.Connection, node_id: str) -> bool:
    """Approve a node; return False when it was before."""
    return bool(await postgres.execute(connection, _APPROVE, {"node_id": node_id}))
