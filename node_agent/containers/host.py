"""What this machine can run containers with: values, from what podman or docker say of themselves.

Pure. Called by `node_agent.containers.house`, which asks the programs. `labels` is how the controller learns of it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PODMAN_FLOOR = (4, 0)
"""The first podman with the log driver `passthrough`, without which an engine's log would be podman's."""


class Program(StrEnum):
    """Container programs that are driven by their command line."""

    PODMAN = "podman"
    DOCKER = "docker"


@dataclass(frozen=True, kw_only=True)
class ContainerHost:
    """One usable container program: absolute path, what it is, and what it can promise.

    `is_rootless`: its containers' root is an ordinary user of this machine. `has_limits`: memory and processes can be
    bounded here. `max_files` and `max_processes` are the most that a container may be given.
    """

    program: Program
    path: str
    version: str
    is_rootless: bool
    has_limits: bool
    max_files: int = 65536
    max_processes: int = 8192


@dataclass(frozen=True, kw_only=True)
class NoContainers:
    """Why no container can be run here, as half a sentence."""

    reason: str


NOTHING_FOUND = NoContainers(reason="it has neither podman nor docker")


def labels(found: ContainerHost | NoContainers) -> dict[str, str]:
    """Return what the node says of itself; `controller.reconcile.picture` reads `container.program` and `.fault`."""
    if isinstance(found, NoContainers):
        return {"container.fault": found.reason}
    return {
        "container.program": found.program.value,
        "container.version": found.version,
        "container.rootless": "yes" if found.is_rootless else "no",
        "container.limits": "yes" if found.has_limits else "no",
    }


def podman_host(path: str, said: str, *, max_files: int, max_processes: int) -> ContainerHost | NoContainers:
    """Return what `podman info --format json` says."""
    facts = _object(said)
    version = _text(facts, "version", "Version")
    if not version:
        return NoContainers(reason="podman is there but does not work: run `podman info`")
    if _numbers(version) < PODMAN_FLOOR:
        return NoContainers(reason=f"podman {version} is too old: 4.0 or newer is needed")
    is_rootless = _at(facts, "host", "security", "rootless") is True
    controllers = _at(facts, "host", "cgroupControllers") or ()
    # Without cgroups v2 a rootless podman refuses every limit.
    can_limit = not is_rootless or _text(facts, "host", "cgroupVersion") == "v2"
    return ContainerHost(
        program=Program.PODMAN,
        path=path,
        version=version,
        is_rootless=is_rootless,
        has_limits=can_limit and {"memory", "pids"} <= set(controllers),
        max_files=max_files,
        max_processes=max_processes,
    )


def docker_host(path: str, said: str, *, uid: int, max_files: int, max_processes: int) -> ContainerHost | NoContainers:
    """Return what `docker info --format json` says; `uid` is the node agent's own."""
    facts = _object(said)
    version = _text(facts, "ServerVersion")
    if not version:
        return NoContainers(reason="docker is there but its daemon does not answer")
    options = facts.get("SecurityOptions")
    is_rootless = isinstance(options, list) and any("rootless" in str(option) for option in options)
    if uid != 0 and not is_rootless:
        # Its containers are root's, so that their network could not be entered without docker.sock as a key to root.
        return NoContainers(reason="docker runs as root here and the node agent does not: install podman")
    return ContainerHost(
        program=Program.DOCKER,
        path=path,
        version=version,
        is_rootless=is_rootless,
        has_limits=facts.get("MemoryLimit") is True and facts.get("PidsLimit") is True,
        max_files=max_files,
        max_processes=max_processes,
    )


def _object(text: str) -> Mapping[str, Any]:
    start = text.find("{")  # warnings come before it, on the same output
    try:
        found = json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(value: Any, *path: str) -> str:
    found = _at(value, *path)
    return found if isinstance(found, str) else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
