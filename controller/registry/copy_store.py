"""The SQL of copies: versions on their way into nodes' stores, and what may leave one. Called by
`controller.registry.copies`, and by `controller.reconcile` for what one pass needs.
"""

from collections.abc import Iterable, Sequence

from controller.registry.model import Copy, Holding
from core.infra import postgres

_COPY = """
SELECT copy_id, version_id, model.name AS model, version.number AS version, version.source, node_id,
       node.name AS node_name, from_node, file_copy.state, code, message, file_copy.created_at, finished_at
  FROM controller.file_copy JOIN controller.version USING (version_id) JOIN controller.model USING (model_id)
       JOIN controller.node USING (node_id)
"""
_ACTIVE = _COPY + " WHERE finished_at IS NULL ORDER BY file_copy.created_at, copy_id"
_NEWEST = _COPY + " ORDER BY file_copy.created_at DESC, copy_id LIMIT 200"
_BY_ID = _COPY + " WHERE copy_id = %(copy_id)s"
_OF = _COPY + " WHERE version_id = %(version_id)s AND node_id = %(node_id)s AND finished_at IS NULL"
_INSERT = """
INSERT INTO controller.file_copy (copy_id, version_id, node_id, from_node, state, finished_at)
VALUES (%(copy_id)s, %(version_id)s, %(node_id)s, %(from_node)s, %(state)s,
        CASE WHEN %(state)s = 'queued' THEN NULL ELSE now() END)
ON CONFLICT (version_id, node_id) WHERE finished_at IS NULL
DO UPDATE SET from_node = coalesce(excluded.from_node, file_copy.from_node)
"""
# A finished copy never moves again.
_END = """
UPDATE controller.file_copy SET state = %(state)s, code = %(code)s, message = %(message)s, finished_at = now()
 WHERE copy_id = %(copy_id)s AND finished_at IS NULL
"""
_NODES = "SELECT name, node_id FROM controller.node ORDER BY name"
# Two who look at the same time would each count on the other's copy: they come one after the other.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('slice-file-removals'))"
_HOLDINGS = """
WITH wanted AS (
    SELECT DISTINCT sha256, size_bytes FROM controller.file WHERE version_id = ANY (%(version_ids)s)
), whole AS (
    SELECT version_id FROM controller.file
      LEFT JOIN controller.node_file AS held ON held.sha256 = file.sha256 AND held.node_id = %(node_id)s
     WHERE version_id NOT IN (
           -- The same content under another name is taken off with it: it is whole elsewhere too.
           SELECT same.version_id FROM controller.version AS same JOIN controller.version AS meant USING (digest)
            WHERE meant.version_id = ANY (%(version_ids)s))
     GROUP BY version_id HAVING bool_and(held.node_id IS NOT NULL)
)
SELECT sha256, size_bytes,
       EXISTS (SELECT 1 FROM controller.node_file AS held
                WHERE held.sha256 = wanted.sha256 AND held.node_id = %(node_id)s) AS is_here,
       EXISTS (SELECT 1 FROM controller.node_file AS held JOIN controller.node USING (node_id)
                WHERE held.sha256 = wanted.sha256 AND node_id <> %(node_id)s AND node.state <> 'lost'
                  AND NOT EXISTS (SELECT 1 FROM controller.file_removal AS removal
                                   WHERE removal.node_id = held.node_id AND removal.sha256 = held.sha256)
              ) AS is_elsewhere,
       ARRAY (SELECT DISTINCT deployment.name
                FROM controller.replica JOIN controller.file ON file.version_id = replica.version_id
                     JOIN controller.deployment USING (deployment_id)
               WHERE file.sha256 = wanted.sha256 AND replica.node_id = %(node_id)s
               ORDER BY deployment.name) AS users,
       EXISTS (SELECT 1 FROM controller.file_copy JOIN controller.file USING (version_id)
                WHERE file.sha256 = wanted.sha256 AND file_copy.node_id = %(node_id)s AND finished_at IS NULL
              ) AS is_awaited,
       ARRAY (SELECT DISTINCT model.name || '@v' || version.number
                FROM whole JOIN controller.file USING (version_id) JOIN controller.version USING (version_id)
                     JOIN controller.model USING (model_id)
               WHERE file.sha256 = wanted.sha256 ORDER BY 1) AS sharers
  FROM wanted ORDER BY sha256
"""
_PUT_ASKED = """
INSERT INTO controller.file_removal (node_id, sha256, is_asked)
SELECT node_id, sha256, true FROM controller.node_file WHERE node_id = %(node_id)s AND sha256 = ANY (%(digests)s)
ON CONFLICT (node_id, sha256) DO UPDATE SET is_asked = true
"""


async def active(connection: postgres.Connection) -> list[Copy]:
    """Return the copies that have not ended, oldest first."""
    return await postgres.fetch_all(connection, Copy, _ACTIVE)


async def newest(connection: postgres.Connection) -> list[Copy]:
    """Return the newest 200 copies, newest first."""
    return await postgres.fetch_all(connection, Copy, _NEWEST)


async def copy(connection: postgres.Connection, copy_id: str) -> Copy | None:
    """Return one copy."""
    return await postgres.fetch_one(connection, Copy, _BY_ID, {"copy_id": copy_id})


async def active_of(connection: postgres.Connection, version_id: str, node_id: str) -> Copy | None:
    """Return the copy of a version to a node that has not ended."""
    return await postgres.fetch_one(connection, Copy, _OF, {"version_id": version_id, "node_id": node_id})


async def insert(
    connection: postgres.Connection, copy_id: str, version_id: str, node_id: str, from_node: str | None, state: str
) -> None:
    """Make a copy, queued or done; one that is under way becomes a move when this is one."""
    row = {
        "copy_id": copy_id,
        "version_id": version_id,
        "node_id": node_id,
        "from_node": from_node,
        "state": state,
    }
    await postgres.execute(connection, _INSERT, row)


async def end(connection: postgres.Connection, copy_id: str, state: str, code: str = "", message: str = "") -> bool:
    """Finish a copy; return False when it had ended before."""
    row = {"copy_id": copy_id, "state": state, "code": code, "message": message}
    return bool(await postgres.execute(connection, _END, row))


async def nodes(connection: postgres.Connection) -> dict[str, str]:
    """Return the id of every node by its name."""
    rows = await (await connection.execute(_NODES)).fetchall()
    return {str(name): str(node_id) for name, node_id in rows}


async def hold_removals(connection: postgres.Connection) -> None:
    """Let nobody else decide what leaves a store until the transaction ends."""
    await connection.execute(_ONE_AT_A_TIME)


async def holdings(connection: postgres.Connection, version_ids: Sequence[str], node_id: str) -> list[Holding]:
    """Return each content of some versions as one node has it."""
    row = {"version_ids": list(version_ids), "node_id": node_id}
    return await postgres.fetch_all(connection, Holding, _HOLDINGS, row)


async def put_asked(connection: postgres.Connection, node_id: str, digests: Iterable[str]) -> int:
    """Ask a node to take `digests` out of its store, whoever has them; return how many."""
    return await postgres.execute(connection, _PUT_ASKED, {"node_id": node_id, "digests": sorted(digests)})
