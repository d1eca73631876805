"""The SQL of versions' files, of where their content lies, and of what is taken out of nodes' stores.

Called by the services of `controller.registry` and, for what one pass needs, by `controller.reconcile`.
"""

from collections.abc import Iterable, Mapping, Sequence

from psycopg.types.json import Jsonb

from controller.exchange import VersionFile
from controller.registry.model import StoredPlace, Template
from core.infra import postgres

_INSERT_FILES = """
INSERT INTO controller.file (version_id, position, path, sha256, size_bytes, source)
SELECT %(version_id)s, position - 1, path, sha256, size_bytes, source
  FROM unnest(%(paths)s::text[], %(digests)s::text[], %(sizes)s::bigint[], %(sources)s::text[])
       WITH ORDINALITY AS given (path, sha256, size_bytes, source, position)
"""
_SET_TEMPLATE = """
UPDATE controller.version SET chat_template = %(text)s, template_findings = %(findings)s
 WHERE version_id = %(version_id)s
"""
_TEMPLATE = """
SELECT chat_template AS text, chat_template_sha256 AS sha256, template_findings AS findings
  FROM controller.version WHERE version_id = %(version_id)s
"""
_DELETE_PLACES = "DELETE FROM controller.node_file WHERE node_id = %(node_id)s AND sha256 <> ALL (%(digests)s)"
# A node's clock is its own: what lies in the future was used now; what it does not say is when we first heard of it.
_PUT_PLACES = """
INSERT INTO controller.node_file (node_id, sha256, size_bytes, used_at)
SELECT %(node_id)s, sha256, size_bytes, coalesce(least(to_timestamp(nullif(used, 0)), now()), now())
  FROM unnest(%(digests)s::text[], %(sizes)s::bigint[], %(used)s::bigint[]) AS given (sha256, size_bytes, used)
ON CONFLICT (node_id, sha256) DO UPDATE SET size_bytes = excluded.size_bytes,
    used_at = CASE WHEN excluded.used_at < now() THEN excluded.used_at ELSE node_file.used_at END
 WHERE node_file.size_bytes <> excluded.size_bytes
    OR (excluded.used_at < now() AND node_file.used_at <> excluded.used_at)
"""
_STORED = """
WITH owned AS (
    SELECT sha256, array_agg(DISTINCT model.name || '@v' || version.number) AS versions
      FROM controller.file JOIN controller.version USING (version_id) JOIN controller.model USING (model_id)
     GROUP BY sha256
)
SELECT node_id, node.name AS node_name, sha256, size_bytes, used_at, removal.node_id IS NOT NULL AS is_leaving,
       coalesce(versions, '{}') AS versions, coalesce(removal.is_asked, false) AS is_asked
  FROM controller.node_file JOIN controller.node USING (node_id) LEFT JOIN owned USING (sha256)
       LEFT JOIN controller.file_removal AS removal USING (node_id, sha256)
 ORDER BY node_name, sha256
"""
# Invariant: nothing is taken out that a version has; the check stands in the statement, so that no plan can be stale.
_PUT_REMOVALS = """
INSERT INTO controller.file_removal (node_id, sha256)
SELECT node_id, sha256 FROM controller.node_file
 WHERE node_id = %(node_id)s AND sha256 = ANY (%(digests)s)
   AND NOT EXISTS (SELECT 1 FROM controller.file WHERE file.sha256 = node_file.sha256)
ON CONFLICT DO NOTHING
"""
# Done with: the node no longer reports it, or a version has come to need it; where an operator asked for it whoever has
# it, a replica or a copy on this node must have come to need it.
_END_REMOVALS = """
DELETE FROM controller.file_removal AS removal
 WHERE node_id = %(node_id)s
   AND (NOT EXISTS (SELECT 1 FROM controller.node_file
                     WHERE node_file.node_id = removal.node_id AND node_file.sha256 = removal.sha256)
        OR (NOT is_asked AND EXISTS (SELECT 1 FROM controller.file WHERE file.sha256 = removal.sha256))
        OR (is_asked AND EXISTS (
                SELECT 1 FROM controller.replica JOIN controller.file USING (version_id)
                 WHERE replica.node_id = removal.node_id AND file.sha256 = removal.sha256))
        OR (is_asked AND EXISTS (
                SELECT 1 FROM controller.file_copy JOIN controller.file USING (version_id)
                 WHERE file_copy.node_id = removal.node_id AND file.sha256 = removal.sha256
                   AND file_copy.finished_at IS NULL)))
"""


async def insert_files(connection: postgres.Connection, version_id: str, files: Sequence[VersionFile]) -> None:
    """Write the files of a new version, the model's first."""
    row = {
        "version_id": version_id,
        "paths": [file.path for file in files],
        "digests": [file.sha256 for file in files],
        "sizes": [file.size_bytes for file in files],
        "sources": [file.source for file in files],
    }
    await postgres.execute(connection, _INSERT_FILES, row)


async def set_template(connection: postgres.Connection, version_id: str, text: str, findings: Sequence[str]) -> None:
    """Write the chat template of a new version."""
    row = {"version_id": version_id, "text": text, "findings": Jsonb(list(findings))}
    await postgres.execute(connection, _SET_TEMPLATE, row)


async def template(connection: postgres.Connection, version_id: str) -> Template:
    """Return the chat template of a version that is there; the other reads leave its text out, for it may be long."""
    found = await postgres.fetch_one(connection, Template, _TEMPLATE, {"version_id": version_id})
    assert found is not None, "the version was read in the same snapshot"
    return found


async def replace_places(connection: postgres.Connection, node_id: str, files: Mapping[str, tuple[int, int]]) -> None:
    """Make `files`, size in bytes and Unix second of the last use by digest, the whole content of a node's store."""
    digests = sorted(files)
    row = {
        "node_id": node_id,
        "digests": digests,
        "sizes": [files[digest][0] for digest in digests],
        "used": [files[digest][1] for digest in digests],
    }
    await postgres.execute(connection, _DELETE_PLACES, row)
    await postgres.execute(connection, _PUT_PLACES, row)


async def stored(connection: postgres.Connection) -> list[StoredPlace]:
    """Return what every node's store holds, by node and digest, with the versions that have the content."""
    return await postgres.fetch_all(connection, StoredPlace, _STORED)


async def end_removals(connection: postgres.Connection, node_id: str) -> None:
    """Forget the removals on one node that are done, or that a version has made pointless."""
    await postgres.execute(connection, _END_REMOVALS, {"node_id": node_id})


async def put_removals(connection: postgres.Connection, node_id: str, digests: Iterable[str]) -> int:
    """Ask a node to take `digests` out of its store, but for what is needed by now; return how many that are new."""
    return await postgres.execute(connection, _PUT_REMOVALS, {"node_id": node_id, "digests": sorted(digests)})
