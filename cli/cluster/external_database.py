"""A PostgreSQL of the operator's own: tried once before a start, so that a wrong URL is told at once, by its flag."""

import psycopg

from core.errors import Failure

_TIMEOUT_S = 10


def check(url: str) -> None:
    """Connect once.

    Raises:
        Failure: `settings.invalid` for a URL that is none, `storage.unavailable` when nobody answers or lets us in.
    """
    try:
        facts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise Failure(
            "settings.invalid",
            "the value of --database-url is no libpq URL",
            hint="write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
            param="database_url",
        ) from None
    try:
        psycopg.connect(url, connect_timeout=_TIMEOUT_S).close()
    except psycopg.Error as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise Failure(
            "storage.unavailable",
            f"the database at {facts.get('host', 'the default socket')} cannot be used: {reason}",
            hint="check --database-url, the server and its password",
            param="database_url",
        ) from None
