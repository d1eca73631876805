"""Fixtures of the single-machine cluster: short private directories and real processes that always end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cluster import recording
from core.infra import cluster
from core.infra.cluster import ClusterBlock
from core.infra.entropy import SystemEntropy


@pytest.fixture
def closed_parent() -> Iterator[Path]:
    """A 0700 directory, as a home often is, with a short path."""
    path = Path(tempfile.mkdtemp(prefix="sl-"))
    path.chmod(0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def block(closed_parent: Path) -> Iterator[ClusterBlock]:
    """A recorded cluster that has not been started."""
    made = ClusterBlock(
        cluster_id="clu_test",
        data_dir=closed_parent / "data",
        runtime_dir=closed_parent / "run",
        host="127.0.0.1",
        door_port=_free_port(),
        controller_port=_free_port(),
        base_port=31900,
    )
    cluster.make_private_dir(made.data_dir)
    recording.make_dirs(made)
    recording.make_secrets(made, SystemEntropy())
    cluster.save(made)
    yield made
    assert os.path.isdir(closed_parent)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
