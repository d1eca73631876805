"""What an HAProxy holds, as values and files: its maps, its TLS files, the revoked certificates.

Called by `node_agent.dataplane.plane` alone.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from core.errors import Failure
from core.infra import cluster, credentials
from node_agent.dataplane import entries
from node_agent.dataplane.admin import AdminError
from node_agent.dataplane.configuration import LEASE, LEASE_FROM, LEASE_UNTIL, PATHS, REVOKED, ROUTES
from node_agent.dataplane.entries import PlaneEntry
from node_agent.dataplane.slot import Living

_REVOKED_FILE = "revoked"


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A node's certificate with its key, and whom it believes; PEM."""

    identity: str
    authority: str


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the running HAProxy is known to hold; None: unknown."""

    entries: tuple[PlaneEntry, ...] | None = None
    lease: tuple[int, int] | None = None
    tls: Tls | None = None
    revoked: frozenset[str] | None = None


def maps(held: Held, *, is_whole: bool = True) -> dict[str, str]:
    """Return the files of the maps in `held`; what is unknown is empty when they are to be whole, else left out."""
    lease = held.lease or ((0, 0) if is_whole else None)
    found = held.entries if held.entries is not None else (() if is_whole else None)
    maps = {}
    if lease is not None:
        maps[LEASE] = entries.file_text(((LEASE_FROM, lease[0]), (LEASE_UNTIL, lease[1])))
    if held.revoked is not None or is_whole:
        maps[REVOKED] = entries.file_text(entries.revoked(held.revoked or ()))
    if found is not None:
        maps |= {ROUTES: entries.file_text(entries.routes(found)), PATHS: entries.file_text(entries.allowed(found))}
    return maps


async def maps_of(old: Living) -> dict[str, str]:
    """Return the maps of an HAProxy that is to be replaced: what it serves goes on being served; none if it hangs."""
    admin = old.slot.admin
    found = {}
    for name in (ROUTES, PATHS, LEASE, REVOKED):
        with contextlib.suppress(AdminError):  # it hangs, or it is of a release that had no such map
            found[name] = entries.file_text(await admin.map_lines(name))
    return found


def read_revoked(directory: Path) -> frozenset[str] | None:
    """Return the certificates that were revoked when somebody last told us, None when nobody ever did."""
    try:
        return frozenset((directory / _REVOKED_FILE).read_text().split())
    except (OSError, UnicodeError):
        return None  # nothing is known: what runs is left as it is


def write_revoked(directory: Path, serials: frozenset[str]) -> None:
    """Keep the revoked certificates for a start without a controller."""
    with contextlib.suppress(OSError):  # a full disk: the running HAProxy knows it all the same
        cluster.write_private(directory / _REVOKED_FILE, "\n".join(sorted(serials)))


def read_tls(tls_dir: Path) -> Tls:
    """Return the TLS files of a node.

    Raises:
        Failure: `node.certificate_invalid` when there are none.
    """
    own = credentials.load(tls_dir)
    if own is None:
        raise Failure(
            "node.certificate_invalid",
            f"there is no certificate in {tls_dir} yet",
            hint="the controller's own node asks for one as soon as that answers; any other joins again",
        )
    return Tls(
        identity=f"{own.certificate_pem.strip()}\n{own.key_pem.strip()}\n", authority=f"{own.authority_pem.strip()}\n"
    )
