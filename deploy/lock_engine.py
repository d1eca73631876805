"""Writes the lock of an engine's version: `python deploy/lock_engine.py ENGINE VERSION`, after `install_plan` names it.

In: an adapter's install plan, and whatever indexes pip is set up with. Out: the plan's `lock`, every distribution of
the whole tree pinned, with the hash of the file that pip would take on each interpreter and machine below. Nothing is
downloaded but metadata where the index has it apart. A target for which the index has no files is left out of the lock,
whose first line names those it covers: an installation elsewhere is refused. To lock against the public index alone,
give pip an empty configuration (`PIP_CONFIG_FILE`).
"""

import json
import subprocess
import sys
from pathlib import Path

from adapters import registry

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
_TAGS = (
    "manylinux_2_34",
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux_2_5",
    "manylinux1",
    "linux",
)


def resolved(requirements: tuple[str, ...], python: str, machine: str) -> dict[str, tuple[str, str]]:
    """Return name -> (version, sha256) of the whole tree on one target, empty when the index cannot serve it."""
    here = python == f"{sys.version_info.major}.{sys.version_info.minor}" and machine == _machine()
    target = [] if here else ["--target", "unused", "--only-binary", ":all:", "--python-version", python]
    for tag in () if here else _TAGS:
        target += ["--platform", f"{tag}_{machine}"]
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run([*pip, *target, *requirements], capture_output=True, text=True, timeout=1800)
    if done.returncode:
        print(f"{python} {machine}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    items = json.loads(done.stdout)["install"]
    return {
        item["metadata"]["name"].lower().replace("_", "-"): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in items
    }


def _machine() -> str:
    return subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()


def merged(trees: list[dict[str, tuple[str, str]]]) -> dict[tuple[str, str], list[str]]:
    """Return (name, version) -> hashes, sorted.

    Raises:
        SystemExit: two targets resolve to different versions of one distribution.
    """
    pins: dict[str, str] = {}
    hashes: dict[tuple[str, str], set[str]] = {}
    for tree in trees:
        for name, (version, digest) in tree.items():
            if pins.setdefault(name, version) != version:
                raise SystemExit(f"{name} is {version} on one target and {pins[name]} on another: pin it in the plan")
            hashes.setdefault((name, version), set()).add(digest)
    return {key: sorted(found) for key, found in sorted(hashes.items())}


def main() -> None:
    """Write the lock."""
    engine, version = sys.argv[1:3]
    plan = registry.adapter(engine).install_plan(version)
    targets = [(python, machine) for machine in MACHINES for python in PYTHONS]
    trees = {target: resolved(plan.requirements, *target) for target in targets}
    covered = ", ".join(f"Python {python} on {machine}" for (python, machine), tree in trees.items() if tree)
    lines = [f"# {engine} {version}: {covered}. Made by deploy/lock_engine.py; other targets are refused."]
    for (name, pinned), found in merged(list(trees.values())).items():
        lines.append(" \\\n    ".join([f"{name}=={pinned}", *(f"--hash=sha256:{digest}" for digest in found)]))
    place = Path(plan.lock)
    place.parent.mkdir(exist_ok=True)
    place.write_text("\n".join(lines) + "\n")
    print(f"{place}: {len(lines) - 1} distributions; {covered}")


if __name__ == "__main__":
    main()
