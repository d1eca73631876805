"""The SQL of models that engines hold which somebody else runs. Called by the services of `controller.registry`."""

from controller.registry.model import AdoptedHolder
from core.infra import postgres

_HOLDERS = """
SELECT model ->> 'sha256' AS sha256, fact ->> 'engine' AS format, node.name AS node_name,
       fact -> 'adopted' ->> 'base_url' AS base_url, model ->> 'name' AS remote_model
  FROM controller.node
 CROSS JOIN LATERAL jsonb_array_elements(engines) AS fact
 CROSS JOIN LATERAL jsonb_array_elements(coalesce(nullif(fact -> 'adopted', 'null') -> 'models', '[]')) AS model
 ORDER BY node.name, remote_model
"""
_NAMES_OF_FORMAT = """
SELECT name, digest FROM controller.version JOIN controller.model USING (model_id) WHERE format = %(format)s
"""
_FORMATS_OF = "SELECT DISTINCT format FROM controller.version WHERE model_id = %(model_id)s"


async def holders(connection: postgres.Connection) -> list[AdoptedHolder]:
    """Return which models the engines hold that somebody else runs, as the nodes reported last."""
    return await postgres.fetch_all(connection, AdoptedHolder, _HOLDERS)


async def names_of_format(connection: postgres.Connection, format_: str) -> frozenset[tuple[str, str]]:
    """Return model name and digest of every version of one format."""
    rows = await (await connection.execute(_NAMES_OF_FORMAT, {"format": format_})).fetchall()
    return frozenset((str(name), str(digest)) for name, digest in rows)


async def formats_of(connection: postgres.Connection, model_id: str) -> frozenset[str]:
    """Return the formats of a model's versions."""
    rows = await (await connection.execute(_FORMATS_OF, {"model_id": model_id})).fetchall()
    return frozenset(str(row[0]) for row in rows)
