"""Pretended GPUs: shown, preferred by engines that can use them, and filled only as far as they have room."""

import json
from pathlib import Path

import pytest

from tests.system.cluster import Running, a_cluster
from tests.waiting import until

pytestmark = pytest.mark.system
GPU = {"device_id": "GPU-0000", "name": "Pretended", "total_bytes": 8 << 30, "free_bytes": 6 << 30, "kind": "nvidia"}


def states(running: Running, deployment: str) -> list[str]:
    return [str(replica["state"]) for replica in running.replicas(deployment)]


def test_a_pretended_gpu_takes_what_fits_and_the_refusal_names_its_room(tmp_path: Path) -> None:
    file = tmp_path / "gpus.json"
    file.write_text(json.dumps({"devices": [GPU]}))
    with a_cluster() as cluster:
        cluster.up("--starter-model", "", "--devices", f"sim:{file}")
        (node,) = cluster.admin("nodes")["items"]
        assert {device["id"]: device["is_simulated"] for device in node["devices"]} == {"cpu": False, "GPU-0000": True}
        cluster.slice("deploy", "fake", "--name", "small", "--set", f"memory_bytes={16 << 20}")
        until(lambda: states(cluster, "small") == ["ready"], 30.0, "the small replica")
        (replica,) = cluster.replicas("small")
        assert [device["id"] for device in replica["devices"]] == ["GPU-0000"]
        cluster.slice("deploy", "fake", "--name", "huge", "--set", f"memory_bytes={1 << 40}")
        until(lambda: cluster.admin("deployments/huge")["refusal"], 10.0, "the refusal")
        refusal = cluster.admin("deployments/huge")["refusal"]
        assert refusal["code"] == "placement.insufficient_memory"
        assert "1.0 TiB" in refusal["message"]
        assert refusal["nodes"][0]["node"] == node["name"]
        # The device tells of new room, and the waiting deployment is looked at again without anyone asking.
        file.write_text(json.dumps({"devices": [{**GPU, "total_bytes": 4 << 40, "free_bytes": 4 << 40}]}))
        until(lambda: states(cluster, "huge"), 15.0, "the placement on the larger device")
