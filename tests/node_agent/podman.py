"""A podman of the tests' own: its storage, its configuration and an image made from this machine's python3.

Skips, with the reason, where podman is missing or can run nothing here.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path("/usr/bin/python3")
_LEFT_OUT = ("test", "idlelib", "tkinter", "lib2to3", "ensurepip", "dist-packages", "site-packages", "__pycache__")
_RUNTIMES = ("", "crun", "runc")


class Podman:
    """podman under configuration files of its own, below `home`."""

    def __init__(self, home: Path) -> None:
        path = shutil.which("podman")
        if path is None:
            pytest.skip("podman is not installed")
        self.path, self.home = path, home
        self.reference = ""
        (home / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/graph"\nrunroot = "{home}/run"\n'
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """What a podman of this storage is started with."""
        names = {"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_CONF": "containers.conf"}
        return {**os.environ, **{name: str(self.home / file) for name, file in names.items()}}

    def run(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command of podman."""
        data = None if stdin is None else stdin.decode("latin-1")
        return subprocess.run(
            [self.path, *words],
            env=self.environment,
            input=data,
            encoding="latin-1",
            capture_output=True,
            timeout=180,
        )

    def make_image(self, files: Mapping[str, Path], package: Path | None = None) -> None:
        """Import an image with python3, its standard library, one `package` and `files`; find a runtime that works."""
        tree = self.home / "tree"
        _copy_python(tree, package)
        for place, source in files.items():
            target = tree / place.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        archive = self.home / "image.tar"
        subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True, timeout=120)
        shutil.rmtree(tree)
        reasons = []
        for runtime in _RUNTIMES:
            chosen = f'runtime = "{runtime}"\n' if runtime else ""
            limits = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
            (self.home / "containers.conf").write_text(
                f'{limits}[engine]\ntmp_dir = "{self.home}/libpod"\ncgroup_manager = "cgroupfs"\n{chosen}'
            )
            if not self.reference:
                done = self.run("import", str(archive), "localhost/slice-test:1")
                if done.returncode != 0:
                    pytest.skip(f"podman cannot import an image here: {done.stderr.strip()[-200:]}")
                digest = self.run("image", "inspect", "localhost/slice-test:1", "--format", "{{.Digest}}").stdout
                self.reference = f"localhost/slice-test@{digest.strip()}"
            done = self.run("run", "--rm", "--network", "none", self.reference, "python3", "-c", "print(42)")
            if done.returncode == 0:
                return
            reasons.append(f"{runtime or 'default'}: {done.stderr.strip()[-200:]}")
        pytest.skip(f"podman can run no container here ({'; '.join(reasons)})")

    def names(self) -> list[str]:
        """Return the containers there are, dead ones included."""
        return self.run("ps", "--all", "--format", "{{.Names}}").stdout.split()

    def close(self) -> None:
        """Remove every container and the whole storage."""
        self.run("rm", "--all", "--force", "--time", "0")
        self.run("rmi", "--all", "--force")
        shutil.rmtree(self.home, ignore_errors=True)


def _copy_python(tree: Path, package: Path | None) -> None:
    if not PYTHON.exists() or shutil.which("ldd") is None:
        pytest.skip(f"there is no {PYTHON}, or no ldd, to make an image from")
    real = PYTHON.resolve()
    library = Path(f"/usr/lib/{real.name}")
    for folder in ("usr/bin", "tmp", "proc", "sys", "dev", "etc", "run"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(real, tree / "usr/bin/python3")
    shutil.copytree(library, tree / str(library)[1:], ignore=shutil.ignore_patterns(*_LEFT_OUT, "config-*"))
    found = set()
    if package is not None:
        place = tree / f"usr/local/lib/{real.name}/dist-packages"
        for folder in package.parent.glob(f"{package.name}*"):
            shutil.copytree(folder, place / folder.name, symlinks=True)
    for binary in (real, *library.glob("lib-dynload/*.so"), *(package.rglob("*.so") if package else ())):
        said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, timeout=20).stdout
        found |= {word for word in said.split() if word.startswith("/") and Path(word).is_file()}
    for name in found:
        target = tree / name[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)
