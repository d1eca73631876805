"""Machines as network namespaces of this one: each has a loopback and an address of its own, and a wire to the others.

A wire is a veth pair into a bridge in a namespace of its own, so that nothing of it shows in the host's network.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, kw_only=True)
class Place:
    """One machine's network; `command` runs `slice` in it."""

    name: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.prefix, sys.executable, "-m", "cli")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def places(count: int) -> Iterator[list[Place]]:
    """Give `count` places that reach each other and nobody else; skip, with the reason, where none can be made."""
    stem = f"sl{os.getpid() % 100000}"
    names = [f"{stem}x", *(f"{stem}n{number}" for number in range(count))]
    try:
        try:
            made = _made(names)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"network namespaces cannot be made here: {why.strip()}")
        yield made
    finally:
        for name in names:  # its end of a wire goes with a namespace, and the other end with that one
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _made(names: list[str]) -> list[Place]:
    for name in names:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    hub, *others = names
    _ip("-n", hub, "link", "add", "hub", "type", "bridge")
    _ip("-n", hub, "link", "set", "hub", "up")
    made = []
    for number, name in enumerate(others):
        place = Place(name=name, address=f"10.77.0.{number + 1}")
        _ip("-n", hub, "link", "add", f"port{number}", "type", "veth", "peer", "name", "wire", "netns", name)
        _ip("-n", hub, "link", "set", f"port{number}", "master", "hub", "up")
        _ip("-n", name, "addr", "add", f"{place.address}/24", "dev", "wire")
        _ip("-n", name, "link", "set", "wire", "up")
        made.append(place)
    return made
