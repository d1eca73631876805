"""The node's container program: found once, asked for images, and cleaned of what killed keepers left.

Comes in: the environment, the node's data directory. Goes out: a `ContainerHost`, images that are there. Called by
`node_agent.agent` and `node_agent.runtimes.container`. Must not touch a container without this node's label.
"""

import asyncio
import contextlib
import hashlib
import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from core.errors import Failure
from core.infra.logs import Log
from node_agent import shim_client
from node_agent.containers import argv
from node_agent.containers.host import (
    NOTHING_FOUND,
    ContainerHost,
    NoContainers,
    Program,
    docker_host,
    podman_host,
)
from node_agent.subprocesses import Children, Done

_ASK_DEADLINE_S = 30.0
_PULL_DEADLINE_S = 3600.0
_REMOVE_DEADLINE_S = 60.0
_FILES, _PROCESSES = 65_536, 8_192
_FOR_CONTAINERS = ("CONTAINERS_", "XDG_", "DOCKER_")
_PLAIN = frozenset({"PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS"})
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"})


def client_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what podman and docker see of our environment: where their own files are, and no token."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PLAIN or name in _PROXIES or name.startswith(_FOR_CONTAINERS)
    }


def node_key(data_dir: Path) -> str:
    """Return what marks the containers of the node agent of `data_dir` on a machine with several."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]


class ContainerHouse:
    """What this node runs containers with; `may_pull` lets it bring images that are not here."""

    def __init__(
        self, *, data_dir: Path, environment: Mapping[str, str], children: Children, log: Log | None, may_pull: bool
    ) -> None:
        self.key = node_key(data_dir)
        self.environment = client_environment(environment)
        self._children = children
        self._log = log
        self._may_pull = may_pull
        self.found: ContainerHost | NoContainers = NOTHING_FOUND

    async def look(self) -> None:
        """Find out what there is; podman is preferred, because it needs no daemon and no root."""
        found: ContainerHost | NoContainers = NOTHING_FOUND
        for program in Program:
            path = await asyncio.to_thread(shutil.which, program.value, path=self.environment.get("PATH"))
            if path is None:
                continue
            asked = await self._asked(program, path)
            if isinstance(found, NoContainers) and (isinstance(asked, ContainerHost) or found is NOTHING_FOUND):
                found = asked
        self.found = found
        if isinstance(found, ContainerHost) and self._log is not None:
            self._log.info("containers_found", program=found.program.value, version=found.version)

    async def _asked(self, program: Program, path: str) -> ContainerHost | NoContainers:
        try:
            done = await self._run([path, "info", "--format", "json"], _ASK_DEADLINE_S)
        except Failure as failure:
            return NoContainers(reason=f"{program.value} does not answer: {failure.message}")
        files = min(_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 63))
        processes = min(_PROCESSES, resource.getrlimit(resource.RLIMIT_NPROC)[1] % (1 << 63))
        if program is Program.PODMAN:
            return podman_host(path, done.output, max_files=files, max_processes=processes)
        return docker_host(path, done.output, uid=os.getuid(), max_files=files, max_processes=processes)

    def host(self) -> ContainerHost:
        """Return the container program.

        Raises:
            Failure: `container.unavailable`.
        """
        if isinstance(self.found, NoContainers):
            raise Failure(
                "container.unavailable",
                f"this node cannot run containers: {self.found.reason}",
                hint="install podman 4 or newer there and start its node agent again",
            )
        return self.found

    async def ensure_image(self, image: str) -> None:
        """Check that `image` is here, or bring it where that is allowed.

        Raises:
            Failure: `container.unavailable`, `container.image_not_found`, `container.not_answering`.
        """
        host = self.host()
        if (await self._run(argv.image_exists(host, image), _ASK_DEADLINE_S)).code == 0:
            return
        if not self._may_pull:
            raise Failure(
                "container.image_not_found",
                f"the image {image} is not on this node",
                hint=f"bring it with `{host.program.value} pull {image}`, or set container_pull to missing",
            )
        if self._log is not None:
            self._log.info("image_pull_begun", image=image)
        done = await self._run(argv.pulled(host, image), _PULL_DEADLINE_S)
        if done.code != 0:
            if self._log is not None:
                self._log.warning("image_pull_failed", image=image, output=done.output[-2000:])
            # Retried: a line that was down for a minute must not cost the replica.
            raise Failure(
                "container.not_answering",
                f"the image {image} cannot be pulled",
                hint=f"try `{host.program.value} pull {image}` there; the node agent's log has its words",
            )

    async def remove(self, name: str) -> None:
        """End and remove one of our containers, if it is still there."""
        if isinstance(self.found, ContainerHost):
            with contextlib.suppress(Failure):  # the next start of the node agent sweeps it
                await self._remove(self.found, name)

    async def _remove(self, found: ContainerHost, name: str) -> None:
        known = await self._run(argv.identified(found, name), _ASK_DEADLINE_S)
        if known.code != 0:
            return
        # Whose conmon was killed is found dead by the first try, which fails on that, and removed by the second.
        if (await self._run(argv.removed(found, name), _REMOVE_DEADLINE_S)).code != 0:
            await self._run(argv.removed(found, name), _REMOVE_DEADLINE_S)
        # Podman leaves such a one's state and its cgroup with the runtime below.
        container_id, _, runtime = known.output.strip().rpartition("\n")[2].partition(" ")
        path = await asyncio.to_thread(shutil.which, runtime, path=self.environment.get("PATH")) if runtime else None
        if path is not None:
            await self._run(argv.forgotten(path, container_id), _REMOVE_DEADLINE_S)

    async def sweep(self, replicas_dir: Path) -> int:
        """Remove this node's containers that no living shim keeps; return how many there were.

        Called before any replica is begun: a keeper that starts one now would lose it.
        """
        if isinstance(self.found, NoContainers):
            return 0
        count = 0
        with contextlib.suppress(Failure):
            done = await self._run(argv.ours(self.found, self.key), _ASK_DEADLINE_S)
            names = [line.strip() for line in done.output.splitlines() if done.code == 0]
            for name in names:
                replica_id = replica_of(name, self.key)
                if replica_id and not await _is_kept(replicas_dir / replica_id):
                    await self.remove(name)
                    count += 1
        if count and self._log is not None:
            self._log.warning("containers_removed", containers=count)
        return count

    async def _run(self, words: list[str], deadline_s: float) -> Done:
        try:
            async with asyncio.timeout(deadline_s):
                return await self._children.run(tuple(words), environment=self.environment)
        except TimeoutError:
            raise Failure(
                "container.not_answering",
                f"`{Path(words[0]).name} {words[1]}` took longer than {deadline_s:.0f} s",
                hint="it is tried again; look at the load of the node",
            ) from None
        except OSError as error:
            raise Failure("container.unavailable", f"{words[0]} cannot be run: {error.strerror}") from error


def name_of(key: str, replica_id: str) -> str:
    """Return the name of a replica's container."""
    return f"slice-{key}-{replica_id}"


def replica_of(name: str, key: str) -> str:
    """Return whose container is called `name`, "" when it is not one of the node `key`."""
    prefix = name_of(key, "")
    return name.removeprefix(prefix) if name.startswith(prefix) else ""


async def _is_kept(replica_dir: Path) -> bool:
    try:
        return await shim_client.find(replica_dir) is not None
    except Failure:
        return True  # one that lives and cannot be reached is looked at again by its replica's runner
