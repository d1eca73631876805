"""Objects of docs/admin-api.md as the played cluster sends them."""

from typing import Any

CREATED = "2026-11-01T10:00:00+00:00"


def model(name: str = "smollm2", **changes: Any) -> dict[str, Any]:
    """Return a Model with one version."""
    version = {
        "number": 1,
        "id": "ver_00000000000000000001",
        "stage": "candidate",
        "digest": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "source": "pypi:smollm2-gguf==1.0/SmolLM2.gguf",
        "format": "gguf",
        "quantization": "Q4_1",
        "architecture": "llama",
        "parameters": 134515008,
        "context_length": 8192,
        "size_bytes": 98362432,
        "chat_template_sha256": "00",
        "created_at": CREATED,
        "files": [{"path": "SmolLM2.gguf", "sha256": "ab", "size_bytes": 98362432, "nodes": ["box"]}],
    }
    return {
        "name": name,
        "resource_version": 2,
        "created_at": CREATED,
        "aliases": [],
        "deployments": [],
        "size_bytes": 98362432,
        "versions": [version],
        **changes,
    }


def stored(letter: str = "a", **changes: Any) -> dict[str, Any]:
    """Return one file of a node's store that nothing uses."""
    return {
        "node": "box",
        "sha256": letter * 64,
        "size_bytes": 1024**2,
        "used_at": CREATED,
        "versions": [],
        "is_leaving": False,
        **changes,
    }


def deployment(name: str = "smollm2", **changes: Any) -> dict[str, Any]:
    """Return a ready Deployment."""
    return {
        "name": name,
        "model": "smollm2",
        "version": 1,
        "engine": "llamacpp",
        "engine_version": "0.3.1",
        "settings": {"context": 4096},
        "replicas": 1,
        "ready_replicas": 1,
        "current_replicas": 1,
        "generation": 1,
        "resource_version": 1,
        "requires": [],
        "is_enabled": True,
        "disabled_answer": "unavailable",
        "is_deleting": False,
        "created_at": CREATED,
        "updated_at": CREATED,
        "footprint": {"total_bytes": 120000000, "provenance": "computed"},
        "state": "ready",
        "waiting": "",
        "refusal": None,
        **changes,
    }


def starting(waiting: str = "box installs llamacpp", **changes: Any) -> dict[str, Any]:
    """Return a Deployment on its way."""
    return deployment(**{"state": "starting", "ready_replicas": 0, "waiting": waiting, **changes})


def replica(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a ready Replica."""
    return {
        "id": f"rep_{number:020d}",
        "deployment": "smollm2",
        "model": "smollm2",
        "version": 1,
        "node": "box",
        "engine": "llamacpp",
        "engine_version": "0.3.1",
        "state": "ready",
        "desired": "run",
        "incarnation": 1,
        "restarts": 0,
        "pid": 4242,
        "address": "127.0.0.1:20040",
        "devices": [{"id": "cpu", "bytes": 120000000}],
        "memory_bytes": 0,
        "load_s": 0.4,
        "code": "",
        "message": "",
        "log_tail": [],
        "retry_in_s": 0,
        "in_flight": 0,
        "created_at": CREATED,
        "state_since": CREATED,
        **changes,
    }


def dead_replica(number: int = 2) -> dict[str, Any]:
    """Return a Replica whose engine ended by itself and is tried again."""
    return replica(
        number,
        state="backoff",
        pid=None,
        address="",
        code="engine.died_at_start",
        message="the engine ended with status 1",
        log_tail=["loading", "CUDA error: out of memory"],
        retry_in_s=4.2,
        restarts=3,
    )


def node(name: str = "box") -> dict[str, Any]:
    """Return a Node with a CPU and a simulated GPU."""
    gpu = {
        "id": "GPU-1",
        "kind": "nvidia",
        "name": "NVIDIA H100",
        "total_bytes": 80 * 1024**3,
        "free_bytes": 60 * 1024**3,
        "promised_bytes": 20 * 1024**3,
        "utilisation": 0.25,
        "temperature_c": 41.0,
        "power_w": 120.0,
        "is_simulated": True,
    }
    cpu = {**gpu, "id": "cpu", "kind": "cpu", "name": "EPYC", "temperature_c": None, "power_w": None}
    return {
        "id": "nod_00000000000000000001",
        "name": name,
        "state": "ready",
        "last_seen_s_ago": 0.8,
        "agent_version": "0.1.0",
        "hostname": name,
        "system": "linux",
        "machine": "x86_64",
        "cpu_count": 2,
        "memory_bytes": 8 * 1024**3,
        "disk_total_bytes": 100 * 1024**3,
        "disk_free_bytes": 40 * 1024**3,
        "labels": {"rack": "7"},
        "devices": [{**cpu, "is_simulated": False}, gpu],
        "engines": [
            {
                "engine": "llamacpp",
                "is_usable": True,
                "reason": "",
                "device_kinds": ["cpu"],
                "installed_versions": ["0.3.1"],
            },
            {"engine": "vllm", "is_usable": False, "reason": "no driver", "device_kinds": [], "installed_versions": []},
        ],
        "generation": 7,
        "applied_generation": 7,
        "session_epoch": 2,
    }


def install(version: str = "0.3.1", **changes: Any) -> dict[str, Any]:
    """Return one version of an engine on a node."""
    return {
        "version": version,
        "state": "ready",
        "code": "",
        "message": "",
        "digest": "ab" * 32,
        "size_bytes": 64 * 1024**2,
        "is_wanted": True,
        "source": "",
        "is_default": True,
        "warning": "",
        "deployments": ["smollm2"],
        **changes,
    }


def engine(name: str = "llamacpp", **changes: Any) -> dict[str, Any]:
    """Return an Engine that is installed on one node."""
    node = {
        "node": "box",
        "state": "ready",
        "is_usable": True,
        "reason": "",
        "device_kinds": ["cpu"],
        "installs": [install()],
        "adopted": None,
    }
    return {
        "name": name,
        "versions": ["0.3.1"],
        "default_version": "0.3.1",
        "previous_version": "",
        "is_program": False,
        "is_adoptable": False,
        "formats": ["gguf"],
        "endpoints": ["chat"],
        "capabilities": ["chat", "seed"],
        "runtimes": ["process"],
        "floor": {"version": "0.2", "advisories": "CVE-2026-0001"},
        "deployments": ["smollm2"],
        "nodes": [node],
        **changes,
    }


def key(name: str = "default", **changes: Any) -> dict[str, Any]:
    """Return a Key."""
    return {
        "kid": "0123456789ab",
        "name": name,
        "project": "default",
        "created_at": CREATED,
        "expires_at": None,
        "revoked_at": None,
        **changes,
    }


def event(seq: int, message: str = "smollm2 is ready") -> dict[str, Any]:
    """Return an Event."""
    return {
        "seq": seq,
        "at": CREATED,
        "kind": "replica_ready",
        "subject_kind": "replica",
        "subject": "rep_1",
        "reason": "probe",
        "message": message,
        "data": {},
    }


def error(code: str, message: str, hint: str = "") -> dict[str, Any]:
    """Return the error object of the admin API."""
    return {"error": {"code": code, "message": message, "hint": hint, "param": None, "retry": "never"}}
