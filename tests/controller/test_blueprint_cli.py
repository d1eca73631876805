"""The command line against a whole controller: a cluster goes out as a file and comes back from it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from core.infra import cluster as recorded
from core.infra.cluster import ClusterBlock
from tests.controller.cluster import OPERATOR, Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_lives import with_versions

ROOT = Path(__file__).parents[2]


class Command:
    """`slice` on the data directory of a running controller."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        assert cluster.controller is not None
        (folder / "secrets").mkdir(parents=True)
        block = ClusterBlock(
            cluster_id="clu_test",
            data_dir=folder,
            runtime_dir=folder / "run",
            host="127.0.0.1",
            door_port=1,
            controller_port=cluster.controller.http.port,
            base_port=20000,
        )
        recorded.save(block)
        recorded.write_private(block.secret_file("operator_token"), OPERATOR)
        self._folder = folder

    async def __call__(self, *words: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "--data-dir", str(self._folder), *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), "LANG": "C.UTF-8"},
            cwd=ROOT,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return out.decode() if code == 0 else err.decode()


@pytest.fixture
def slice_(cluster: Cluster, tmp_path: Path) -> Command:
    return Command(cluster, tmp_path / "data")


async def test_a_cluster_is_exported_emptied_and_made_again(cluster: Cluster, slice_: Command, tmp_path: Path) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_versions(cluster, node, 2)
        await slice_("stage", "m@v2", "staging", "--reason", "try it")
        await slice_("alias", "set", "chat", "m@v2")
        await slice_("deploy", "m@v1", "--name", "old", "--replicas", "0", "--require", "tools")
        await slice_("cp", "--deployment", "old", "second", "--set", "context=1024")
        await slice_("disable", "second", "--answer", "not_found")
        file = tmp_path / "cluster.yaml"
        file.write_text(await slice_("export"))
        assert await slice_("diff", "-f", str(file), "--exit-code") == ""
        assert "is used by deployments old, second and alias chat" in await slice_("rm", "m", code=5)
        await slice_("rm", "--force", "m")
        assert await slice_("list") == ""
        node.files.clear()
        await node.observe()
        planned = await slice_("diff", "-f", str(file))
        assert "+ version m@v1  (to be pulled)" in planned
        assert "+ deployment second  (after its pull)" in planned
        applying = asyncio.ensure_future(slice_("apply", "-f", str(file)))
        for number in (1, 2):
            told = await node.until_told(lambda told, file=f"{number:064x}": [w.sha256 for w in told.files] == [file])
            await node.finish_pull(told.files[0].want_id, told.files[0].sha256)
        await applying
        assert await slice_("export") == file.read_text()
        assert await slice_("diff", "-f", str(file), "--prune", "--exit-code") == ""
        bad = tmp_path / "bad.yaml"
        bad.write_text(file.read_text().replace("  replicas: 0", "  replica: 0", 1))
        line = 1 + bad.read_text().splitlines().index("  replica: 0")
        refused = await slice_("apply", "-f", str(bad), code=2)
        assert f"unknown key 'replica' at line {line}; did you mean 'replicas'?" in refused
