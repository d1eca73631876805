"""The command lines of podman and docker, and what those programs say of themselves: values, nothing is run."""

import json
from pathlib import Path

import pytest

from adapters.contract import ContainerSpec, LaunchRequest
from adapters.registry import adapter
from core.errors import Failure
from core.ids import DeviceId, ReplicaId
from core.units import MIB
from node_agent.containers import argv
from node_agent.containers.argv import UID_BASE, Place, Promise
from node_agent.containers.host import ContainerHost, NoContainers, Program, docker_host, labels, podman_host
from node_agent.containers.house import client_environment, name_of, replica_of
from node_agent.runtimes.container import environment_text

IMAGE = f"registry.example/engine@sha256:{'a' * 64}"
SPEC = ContainerSpec(argv=("--port", "8000"), port=8000, entrypoint="server")
CPU_ONLY = Promise(devices=(DeviceId("cpu"),), memory_bytes=4096 * MIB)


def host(program: Program = Program.PODMAN, *, is_rootless: bool = True, has_limits: bool = True) -> ContainerHost:
    return ContainerHost(
        program=program, path=f"/usr/bin/{program}", version="5.0", is_rootless=is_rootless, has_limits=has_limits
    )


def place(work: str = "/data/work", model: str | None = "/data/model") -> Place:
    return Place(
        name="slice-k-rep_1",
        replica_id="rep_1",
        node_key="k",
        image=IMAGE,
        model_dir=Path(model) if model else None,
        work_dir=Path(work),
        env_file=Path("/data/keeper/environment"),
    )


def created(one: ContainerHost, promise: Promise = CPU_ONLY, uid: int = 1000) -> list[str]:
    return argv.create(one, place(), SPEC, promise, uid, uid)


def values(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


every_host = pytest.mark.parametrize(
    "one",
    [
        host(),
        host(is_rootless=False),
        host(Program.DOCKER),
        host(Program.DOCKER, is_rootless=False),
        host(has_limits=False),
    ],
    ids=["podman rootless", "podman root", "docker rootless", "docker root", "podman without limits"],
)


@every_host
def test_every_container_is_shut_in(one):
    words = created(one)
    assert values(words, "--network") == ["none"]
    assert values(words, "--cap-drop") == ["ALL"]
    assert "no-new-privileges" in values(words, "--security-opt")
    assert "--read-only" in words
    assert values(words, "--pull") == ["never"]
    assert len(values(words, "--mount")) == 2
    assert not {"--privileged", "--cap-add", "--publish", "-p", "--pid", "--ipc", "--volume", "-v"} & set(words)
    assert not any("docker.sock" in word or "seccomp=unconfined" in word for word in words)


@every_host
def test_the_image_is_run_by_digest_with_the_engine_s_own_arguments_last(one):
    words = created(one)
    assert words[-3:] == [IMAGE, "--port", "8000"]
    assert values(words, "--entrypoint") == ["server"]
    assert set(values(words, "--label")) == {"slice.replica=rep_1", "slice.node=k"}


@every_host
def test_the_model_is_read_only_and_the_work_directory_is_not(one):
    model, work = sorted(values(created(one), "--mount"))
    assert "dst=/slice/model" in model
    assert model.endswith(("ro=true", "readonly"))
    assert "dst=/slice/work" in work
    assert "ro" not in work.split("dst=/slice/work")[1]


def test_podman_as_root_makes_the_engine_nobody():
    words = created(host(is_rootless=False), uid=0)
    assert values(words, "--uidmap") == values(words, "--gidmap") == [f"0:{UID_BASE}:65536"]
    assert any(mount.endswith("U=true") for mount in values(words, "--mount"))


def test_rootless_podman_makes_it_the_node_agent_s_user_and_docker_as_root_too():
    assert values(created(host()), "--user") == ["0:0"]
    assert values(created(host()), "--uidmap") == []
    assert values(created(host(Program.DOCKER, is_rootless=False), uid=1000), "--user") == ["1000:1000"]


def test_limits_come_from_the_promise_and_only_where_they_can_be_kept():
    assert values(created(host()), "--memory") == [str(5120 * MIB)]
    assert values(created(host(), Promise(devices=(), memory_bytes=64 * MIB)), "--memory") == [str(320 * MIB)]
    assert values(created(host(), Promise(devices=(), memory_bytes=0)), "--memory") == []
    bare = created(host(has_limits=False))
    assert values(bare, "--memory") == values(bare, "--pids-limit") == []


def test_only_the_promised_gpus_are_given_by_their_uuids():
    promise = Promise(devices=(DeviceId("GPU-1"), DeviceId("cpu"), DeviceId("GPU-2")), memory_bytes=0)
    assert values(created(host(), promise), "--device") == ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]
    assert values(created(host()), "--device") == []


def test_a_directory_that_a_mount_cannot_name_is_refused():
    with pytest.raises(Failure) as caught:
        argv.create(host(), place(work="/data,ro/work"), SPEC, CPU_ONLY, 0, 0)
    assert caught.value.code == "cluster.data_dir_unusable"


def test_the_environment_stands_in_a_file_and_never_in_the_command_line():
    assert values(created(host()), "--env-file") == ["/data/keeper/environment"]
    assert not {"--env", "-e"} & set(created(host()))
    assert environment_text({"B": "2 x", "A": "1"}) == "A=1\nB=2 x\n"
    for bad in ({"A": "1\nLD_PRELOAD=x"}, {"A=B": "1"}, {"": "1"}, {"A": "\x00"}):
        with pytest.raises(Failure):
            environment_text(bad)


def test_podman_s_log_is_the_shim_s_and_docker_s_is_followed():
    assert "passthrough" in created(host())
    assert argv.followed_log(host(), "n") == []
    assert argv.followed_log(host(Program.DOCKER), "n") == ["/usr/bin/docker", "logs", "--follow", "n"]


def test_a_name_says_whose_it_is():
    assert replica_of(name_of("k", "rep_1"), "k") == "rep_1"
    assert replica_of(name_of("other", "rep_1"), "k") == ""
    assert replica_of("stranger", "k") == ""


def test_the_client_sees_where_its_files_are_and_no_token():
    seen = client_environment({"PATH": "/bin", "SLICE_TOKEN": "x", "XDG_RUNTIME_DIR": "/run/1", "AWS_SECRET": "y"})
    assert seen == {"PATH": "/bin", "XDG_RUNTIME_DIR": "/run/1"}


# What the programs say


def podman_said(version: str = "4.9.3", *, rootless: bool = True, cgroups: str = "v2", controllers=("memory", "pids")):
    facts = {
        "host": {"security": {"rootless": rootless}, "cgroupVersion": cgroups, "cgroupControllers": list(controllers)},
        "version": {"Version": version},
    }
    return f'time="..." level=warning msg="words"\n{json.dumps(facts)}\n'


def asked_podman(said: str) -> ContainerHost | NoContainers:
    return podman_host("/usr/bin/podman", said, max_files=1024, max_processes=512)


def test_podman_is_understood_even_after_its_warnings():
    found = asked_podman(podman_said())
    assert (found.version, found.is_rootless, found.has_limits, found.max_files) == ("4.9.3", True, True, 1024)
    assert labels(found)["container.rootless"] == "yes"


@pytest.mark.parametrize(
    ("said", "has_limits"),
    [
        (podman_said(cgroups="v1"), False),
        (podman_said(controllers=("cpu",)), False),
        (podman_said(rootless=False, cgroups="v1"), True),
    ],
    ids=["rootless under cgroups v1", "not delegated", "root under cgroups v1"],
)
def test_limits_are_promised_only_where_podman_can_keep_them(said, has_limits):
    assert asked_podman(said).has_limits is has_limits


@pytest.mark.parametrize("said", ["", "no json", "{", "[]", '{"version": 3}', podman_said("3.4.4")])
def test_a_podman_that_is_broken_or_too_old_is_no_container_program(said):
    found = asked_podman(said)
    assert isinstance(found, NoContainers)
    assert labels(found) == {"container.fault": found.reason}


def docker(said: dict[str, object], uid: int = 0) -> ContainerHost | NoContainers:
    return docker_host("/usr/bin/docker", json.dumps(said), uid=uid, max_files=1, max_processes=1)


def test_docker_as_root_is_for_a_node_agent_that_is_root():
    said = {"ServerVersion": "28.2", "SecurityOptions": ["name=seccomp"], "MemoryLimit": True, "PidsLimit": True}
    assert docker(said, uid=0).has_limits
    refused = docker(said, uid=1000)
    assert isinstance(refused, NoContainers)
    assert "install podman" in refused.reason
    rootless = docker({**said, "SecurityOptions": ["name=seccomp", "name=rootless"]}, uid=1000)
    assert rootless.is_rootless
    assert isinstance(docker({"ServerErrors": ["down"]}), NoContainers)


# What adapters want inside


@pytest.mark.parametrize("name", ["fake", "llamacpp"])
def test_an_adapter_s_container_keeps_its_key_in_a_file(name):
    request = LaunchRequest(
        replica_id=ReplicaId("rep_1"),
        engine_version="1",
        python="python3",
        model_path="/slice/model/model.gguf",
        served_name="smol",
        settings={},
        devices=(DeviceId("cpu"),),
        host="127.0.0.1",
        port=8000,
        api_key="very-secret",
        work_dir="/slice/work",
    )
    spec = adapter(name).container(request)
    ((file, text),) = spec.files.items()
    assert spec.argv[-1] == f"/slice/work/{file}"
    assert json.loads(text)["api_key"] == "very-secret"
    assert "very-secret" not in " ".join((*spec.argv, *spec.env.values()))
    assert spec.port == json.loads(text)["port"] == 8000
