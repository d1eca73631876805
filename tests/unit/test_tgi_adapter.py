"""What the TGI adapter says: a launch without a visible key or path, and the words of its dialect."""

import pytest

from adapters.contract import Capability, Endpoint, Floored, HostFacts, LaunchRequest, ModelFacts, ModelFile
from adapters.registry import adapter
from core.footprint import Provenance
from core.ids import DeviceId, ReplicaId, Sha256
from tests.unit.test_adapters import LINUX, SMOLLM2

FILES = tuple(
    ModelFile(path=name, sha256=Sha256(digit * 64), size_bytes=7, stored_at=f"/store/{digit}")
    for name, digit in (("config.json", "a"), ("model.safetensors", "b"))
)


def request(settings: dict | None = None, work_dir: str = "/run/replica/w") -> LaunchRequest:
    return LaunchRequest(
        replica_id=ReplicaId("rep_1"),
        engine_version="3.3.7",
        python="/nowhere/python",
        executable="/usr/bin/text-generation-launcher",
        model_path="/run/replica/model",
        files=FILES,
        served_name="smol",
        settings=settings or {},
        devices=(DeviceId("cpu"),),
        host="127.0.0.1",
        port=20001,
        api_key="very-secret",
        work_dir=work_dir,
    )


def flags(launch) -> dict[str, str]:
    return dict(zip(launch.argv, launch.argv[1:], strict=False))


def test_the_key_is_in_the_environment_and_not_in_the_arguments():
    launch = adapter("tgi").launch(request())
    assert launch.env["API_KEY"] == "very-secret"
    assert not any("very-secret" in word for word in launch.argv)


def test_its_name_in_answers_will_be_the_served_one_and_no_path():
    launch = adapter("tgi").launch(request())
    assert flags(launch)["--model-id"] == "smol"
    assert launch.links == {"smol/config.json": "/store/a", "smol/model.safetensors": "/store/b"}


def test_it_listens_on_loopback_fetches_nothing_and_reports_nothing():
    launch = adapter("tgi").launch(request())
    assert flags(launch)["--hostname"] == "127.0.0.1"
    assert (launch.env["HF_HUB_OFFLINE"], launch.env["USAGE_STATS"]) == ("1", "off")


def test_limits_follow_the_settings_and_a_prompt_leaves_room_for_a_token():
    found = flags(adapter("tgi").launch(request({"context": 1000, "slots": 3})))
    assert (found["--max-total-tokens"], found["--max-input-tokens"], found["--max-batch-total-tokens"]) == (
        "1000",
        "999",
        "3000",
    )


@pytest.mark.parametrize("depth", [1, 30], ids=["a short directory", "a long directory"])
def test_two_replicas_never_share_a_shard_s_socket_and_its_path_is_short(depth):
    work_dir = "/run" + "/replica" * depth
    socket = flags(adapter("tgi").launch(request(work_dir=work_dir)))["--shard-uds-path"]
    assert len(socket) + len("-0") <= 107
    assert socket != "/tmp/text-generation-server"


def test_it_chats_and_completes_and_embeds_nothing():
    one = adapter("tgi")
    assert isinstance(one, Floored)
    assert one.floor[0] == "3.3.7"
    assert one.endpoints({}) == {Endpoint.CHAT, Endpoint.COMPLETIONS}
    assert Capability.EMBEDDINGS not in one.capabilities({})
    assert one.formats == {"safetensors"}


def test_without_the_launcher_it_is_unusable_and_names_what_to_take_instead():
    found = adapter("tgi").fingerprint(
        HostFacts(system="linux", machine="x86_64", cpu_count=2, memory_bytes=1, devices=())
    )
    assert not found.is_usable
    assert "vllm" in found.reason
    assert adapter("tgi").fingerprint(LINUX).is_usable


def test_the_footprint_is_computed_and_unknown_without_sizes():
    found = adapter("tgi").footprint(SMOLLM2, {})
    assert found.provenance is Provenance.COMPUTED
    assert found.total_bytes > SMOLLM2.tensor_bytes
    wide = adapter("tgi").footprint(SMOLLM2, {"dtype": "float32"})
    assert wide.kv_cache_bytes == 2 * found.kv_cache_bytes
    assert adapter("tgi").footprint(ModelFacts(format="safetensors", size_bytes=9), {}).total_bytes is None
