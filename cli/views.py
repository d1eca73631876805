"""How each kind of thing looks in a table: one `View` per object of docs/admin-api.md.

Pure: API objects come in, texts go out; a field that the server left out is `-`, never a crash.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from cli.human import ABSENT, age, instant, local_time, size
from cli.tables import Column, Item, View

_DEAD = frozenset({"backoff", "crash_loop", "failed", "lost", "unhealthy"})


def _text(*path: str) -> Callable[[Item, datetime], str]:
    def cell(item: Item, _: datetime) -> str:
        found: Any = item
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return _shown(found)

    return cell


def _shown(value: object) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or ABSENT
    return str(value)


def _size(key: str) -> Callable[[Item, datetime], str]:
    return lambda item, _: size(item.get(key))


def _age(key: str) -> Callable[[Item, datetime], str]:
    return lambda item, now: age(item.get(key), now)


def _field(key: str) -> Callable[[Item], str]:
    return lambda item: _shown(item.get(key))


def newest_version(model: Item) -> Item:
    """Return the model's version with the highest number, or an empty object when it has none."""
    return max(model.get("versions") or [{}], key=lambda version: version.get("number", 0))


def version_label(number: object) -> str:
    """Return the number of a version as people write it: `v2`."""
    return f"v{number}" if isinstance(number, int) else ABSENT


def _version(item: Item, _: datetime) -> str:
    return version_label(item.get("version"))


def short_digest(version: Item) -> str:
    """Return 12 characters of a SHA-256, or what stands before the colon where there is no file: `builtin`."""
    kind, _, digest = str(version.get("digest") or "").partition(":")
    return (digest[:12] if kind == "sha256" else kind) or ABSENT


def _of_newest(key: str) -> Callable[[Item, datetime], str]:
    return lambda item, _: _shown(newest_version(item).get(key))


def _places(model: Item, _: datetime) -> str:
    version = newest_version(model)
    files = version.get("files") or []
    nodes = {node for file in files for node in file.get("nodes") or []}
    return _shown(sorted({*nodes, *(version.get("adopted_on") or [])}))


def _format(model: Item, _: datetime) -> str:
    version = newest_version(model)
    is_gone = version.get("is_available") is False
    return _shown(f"{version.get('format')} (gone)" if is_gone else version.get("format"))


def _memory(replica: Item, _: datetime) -> str:
    measured = size(replica.get("memory_bytes"))
    if measured != ABSENT:
        return measured
    promised = size(sum(device.get("bytes") or 0 for device in replica.get("devices") or []))
    return promised if promised == ABSENT else f"~{promised}"


def _device_ids(replica: Item, _: datetime) -> str:
    return _shown([device.get("id") for device in replica.get("devices") or []])


def replica_state(replica: Item) -> str:
    """Return the state word of a replica; one that serves its last streams is `draining`, before that `leaving`."""
    state = _shown(replica.get("state"))
    if state != "ready":
        return state
    if replica.get("desired") == "drain":
        return "draining"
    return "leaving" if replica.get("leaving") else state


def _uptime(replica: Item, now: datetime) -> str:
    return age(replica.get("state_since"), now) if replica.get("state") == "ready" else ABSENT


def replica_trouble(replica: Item, _: datetime) -> str:
    """Return why a replica does not serve: its message, when it is tried again, and its engine's last log line.

    Of one that serves and is to leave its node: what it waits for. Of one that is to end on a silent node: the cure.
    """
    if blocked := replica.get("blocked"):
        return _shown(f"{blocked.get('message')}; {blocked.get('hint')}")
    if replica.get("state") == "ready":
        leaving = replica.get("leaving") or {}
        failure = replica.get("move_failure") or {}
        if failure and not leaving:
            return _shown(f"{failure.get('message')}; {failure.get('hint')}")
        to = f"to {leaving['to']}: " if leaving.get("to") else ""
        return _shown(f"{to}{leaving['waiting']}" if leaving.get("waiting") else None)
    parts = [str(replica.get("message") or "")]
    if replica.get("retry_in_s"):
        parts.append(f"again in {float(replica['retry_in_s']):.0f}s")
    tail = [line for line in replica.get("log_tail") or [] if str(line).strip()]
    if tail and replica.get("state") in _DEAD:
        parts.append(f"last log: {str(tail[-1]).strip()}")
    return "; ".join(part for part in parts if part) or ABSENT


def _ready_of(deployment: Item, _: datetime) -> str:
    return f"{deployment.get('ready_replicas', 0)}/{deployment.get('replicas', 0)}"


def deployment_reason(deployment: Item, _: datetime) -> str:
    """Return why a deployment is not ready: what it waits for, or the refusal of the scheduler."""
    refusal, blocked = deployment.get("refusal") or {}, deployment.get("blocked") or {}
    reason = deployment.get("waiting") or refusal.get("message")
    return _shown(f"{reason}; {blocked['hint']}" if reason and blocked.get("hint") else reason)


def _deployment_memory(deployment: Item, _: datetime) -> str:
    footprint = deployment.get("footprint") or {}
    return size(footprint.get("total_bytes"))


def _gpus(node: Item, _: datetime) -> str:
    return _shown([device.get("name") for device in node.get("devices") or [] if device.get("kind") != "cpu"])


def _free(node: Item, _: datetime) -> str:
    return _shown([f"{size(d.get('free_bytes'))} of {size(d.get('total_bytes'))}" for d in node.get("devices") or []])


def _engines(node: Item, _: datetime) -> str:
    return _shown([engine.get("engine") for engine in node.get("engines") or [] if engine.get("is_usable")])


def _seen(node: Item, _: datetime) -> str:
    seconds = node.get("last_seen_s_ago")
    return f"{seconds:.1f}s ago" if isinstance(seconds, int | float) else ABSENT


def placement(node: Item) -> str:
    """Return whether a node gets replicas: `open`, `cordoned`, `draining`, or `unapproved`."""
    if node.get("is_approved") is False:
        return "unapproved"
    if node.get("drain"):
        return "draining"
    return "cordoned" if node.get("is_cordoned") else "open"


def _key_state(key: Item, now: datetime) -> str:
    if key.get("revoked_at"):
        return "revoked"
    expiry = instant(key.get("expires_at"))
    return "expired" if expiry is not None and expiry <= now else "active"


def _percent(pull: Item, _: datetime) -> str:
    total = pull.get("bytes_total") or 0
    return f"{100 * (pull.get('bytes_done') or 0) // total}%" if total else ABSENT


MODELS = View(
    name=_field("name"),
    empty="no models yet; `slice pull NAME` brings one (`slice catalog` lists what can be pulled by name)",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="ID", cell=lambda item, _: short_digest(newest_version(item))),
        Column(title="SIZE", cell=_size("size_bytes"), is_number=True),
        Column(title="FORMAT", cell=_format),
        Column(title="QUANT", cell=_of_newest("quantization")),
        Column(title="DEPLOYED AS", cell=_text("deployments")),
        Column(title="AGE", cell=_age("created_at"), is_number=True),
        Column(title="VERSION", cell=lambda item, _: version_label(newest_version(item).get("number")), is_wide=True),
        Column(title="STAGE", cell=_of_newest("stage"), is_wide=True),
        Column(title="ALIASES", cell=_text("aliases"), is_wide=True),
        Column(title="NODES", cell=_places, is_wide=True),
        Column(title="CONTEXT", cell=_of_newest("context_length"), is_wide=True, is_number=True),
        Column(title="SOURCE", cell=_of_newest("source"), is_wide=True, is_prose=True),
    ),
)

STORED = View(
    name=_field("sha256"),
    empty="the stores are empty; `slice pull NAME` brings a model",
    columns=(
        Column(title="NODE", cell=_text("node")),
        Column(title="FILE", cell=lambda item, _: str(item.get("sha256") or ABSENT)[:12]),
        Column(title="SIZE", cell=_size("size_bytes"), is_number=True),
        Column(title="USED BY", cell=lambda item, _: _used_by(item)),
        Column(title="LAST USED", cell=_age("used_at"), is_number=True),
        Column(title="SHA256", cell=_text("sha256"), is_wide=True),
    ),
)


PLACES = View(
    name=_field("node"),
    empty="no node's store has files of it; a deployment or `slice model copy` brings them",
    columns=(
        Column(title="NODE", cell=_text("node")),
        Column(title="VERSION", cell=_version),
        Column(title="FILES", cell=lambda item, _: f"{item.get('files', 0)}/{item.get('files_total', 0)}"),
        Column(title="SIZE", cell=_size("size_bytes"), is_number=True),
        Column(title="USED BY", cell=_text("used_by")),
        Column(title="STATE", cell=lambda item, _: _place_state(item), is_state=True),
    ),
)


def _place_state(place: Item) -> str:
    """Return a place in a word: whole, on its way in or out, or only a part."""
    if place.get("is_leaving"):
        return "leaving"
    if place.get("is_coming"):
        return "coming"
    return "whole" if place.get("is_whole") else "partial"


def _used_by(place: Item) -> str:
    return "(being removed)" if place.get("is_leaving") else _shown(place.get("versions") or [])


CATALOG = View(
    name=_field("name"),
    empty="the catalogue is empty; `slice pull NAME --source SOURCE` brings a model from anywhere",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="SIZE", cell=_size("size_bytes"), is_number=True),
        Column(title="DESCRIPTION", cell=_text("description"), is_prose=True),
        Column(title="SOURCE", cell=_text("source"), is_wide=True, is_prose=True),
    ),
)

PULLS = View(
    name=_field("id"),
    empty="no pulls",
    columns=(
        Column(title="ID", cell=_text("id")),
        Column(title="MODEL", cell=_text("model")),
        Column(title="STATE", cell=_text("state"), is_state=True),
        Column(title="DONE", cell=_percent, is_number=True),
        Column(title="SIZE", cell=_size("bytes_total"), is_number=True),
        Column(title="NODE", cell=_text("node")),
        Column(title="AGE", cell=_age("created_at"), is_number=True),
        Column(title="DETAIL", cell=lambda item, _: pull_detail(item), is_prose=True, is_optional=True),
        Column(title="SOURCE", cell=_text("source"), is_wide=True, is_prose=True),
    ),
)


def pull_detail(pull: Item) -> str:
    """Return why a pull does not move or why it failed."""
    error = pull.get("error") or {}
    return _shown(error.get("message") or pull.get("waiting"))


DEPLOYMENTS = View(
    name=_field("name"),
    empty="no deployments; `slice deploy MODEL` or `slice run MODEL` makes one",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="MODEL", cell=_text("model")),
        Column(title="VERSION", cell=_version),
        Column(title="ENGINE", cell=_text("engine")),
        Column(title="READY", cell=_ready_of, is_number=True),
        Column(title="STATE", cell=_text("state"), is_state=True),
        Column(title="NEEDS", cell=_deployment_memory, is_number=True),
        Column(title="AGE", cell=_age("created_at"), is_number=True),
        Column(title="ENGINE VERSION", cell=_text("engine_version"), is_wide=True),
        Column(title="GENERATION", cell=_text("generation"), is_wide=True, is_number=True),
        Column(title="REQUIRES", cell=_text("requires"), is_wide=True),
        Column(title="WHY", cell=deployment_reason, is_below=True, is_optional=True),
    ),
)

REPLICAS = View(
    name=_field("id"),
    empty="nothing runs; `slice run MODEL` starts a model",
    columns=(
        Column(title="NAME", cell=_text("deployment")),
        Column(title="ID", cell=_text("id")),
        Column(title="STATE", cell=lambda item, _: replica_state(item), is_state=True),
        Column(title="NODE", cell=_text("node")),
        Column(title="ENGINE", cell=_text("engine")),
        Column(title="MEM", cell=_memory, is_number=True),
        Column(title="DEVICES", cell=_device_ids),
        Column(title="UPTIME", cell=_uptime, is_number=True),
        Column(title="VERSION", cell=_version, is_wide=True),
        Column(title="PID", cell=_text("pid"), is_wide=True, is_number=True),
        Column(title="ADDRESS", cell=_text("address"), is_wide=True),
        Column(title="RESTARTS", cell=_text("restarts"), is_wide=True, is_number=True),
        Column(title="DETAIL", cell=replica_trouble, is_below=True, is_optional=True),
    ),
)


def node_state(node: Item) -> str:
    """Return the state word of a node; one that may not work yet says so."""
    state = _shown(node.get("state"))
    return f"{state}, unapproved" if node.get("is_approved") is False else state


NODES = View(
    name=_field("name"),
    empty="no node has joined; `slice up` starts one on this machine",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="STATE", cell=lambda item, _: node_state(item), is_state=True),
        Column(title="PLACEMENT", cell=lambda item, _: placement(item)),
        Column(title="REPLICAS", cell=_text("replicas"), is_number=True),
        Column(title="SEEN", cell=_seen, is_number=True),
        Column(title="CPUS", cell=_text("cpu_count"), is_number=True),
        Column(title="MEMORY", cell=_size("memory_bytes"), is_number=True),
        Column(title="DISK FREE", cell=_size("disk_free_bytes"), is_number=True),
        Column(title="GPUS", cell=_gpus),
        Column(title="ENGINES", cell=_engines),
        Column(title="ID", cell=_text("id"), is_wide=True),
        Column(title="AGENT", cell=_text("agent_version"), is_wide=True),
        Column(
            title="CERTIFICATE ENDS", cell=lambda item, _: local_time(item.get("certificate_expires_at")), is_wide=True
        ),
        Column(title="DEVICE MEMORY FREE", cell=_free, is_wide=True),
        Column(title="GENERATION", cell=_text("applied_generation"), is_wide=True, is_number=True),
    ),
)

KEYS = View(
    name=_field("name"),
    empty="no API keys; `slice key create NAME` makes one",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="KID", cell=_text("kid")),
        Column(title="PROJECT", cell=_text("project")),
        Column(title="STATE", cell=_key_state, is_state=True),
        Column(title="AGE", cell=_age("created_at"), is_number=True),
        Column(title="EXPIRES", cell=lambda item, _: local_time(item.get("expires_at"))),
    ),
)

JOIN_TOKENS = View(
    name=_field("id"),
    empty="no join tokens; `slice node token create` makes one",
    columns=(
        Column(title="TOKEN", cell=_text("id")),
        Column(title="STATE", cell=_text("state"), is_state=True),
        Column(title="FOR", cell=_text("name")),
        Column(title="LABELS", cell=lambda item, _: _shown(_pairs(item.get("labels")))),
        Column(title="EXPIRES", cell=lambda item, _: local_time(item.get("expires_at"))),
        Column(title="USED BY", cell=_text("used_by")),
        Column(title="APPROVES", cell=_text("is_approving"), is_wide=True),
    ),
)


def _pairs(labels: object) -> list[str]:
    return [f"{key}={value}" for key, value in labels.items()] if isinstance(labels, dict) else []


SECRETS = View(
    name=lambda item: str(item.get("name")),
    empty="no secrets; `slice secret set NAME` stores one",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="USED BY", cell=_text("used_by")),
        Column(title="AGE", cell=_age("created_at"), is_number=True),
        Column(title="READABLE", cell=_text("is_readable")),
    ),
)
ALIASES = View(
    name=_field("name"),
    empty="no aliases; `slice alias set NAME MODEL` makes one",
    columns=(
        Column(title="NAME", cell=_text("name")),
        Column(title="MODEL", cell=_text("model")),
        Column(title="VERSION", cell=lambda item, _: version_label(item.get("version")), is_optional=True),
    ),
)

VERSIONS = View(
    name=lambda item: version_label(item.get("number")),
    empty="no versions",
    columns=(
        Column(title="VERSION", cell=lambda item, _: version_label(item.get("number"))),
        Column(title="STAGE", cell=_text("stage"), is_state=True),
        Column(title="ID", cell=lambda item, _: short_digest(item)),
        Column(title="FORMAT", cell=_text("format")),
        Column(title="QUANT", cell=_text("quantization")),
        Column(title="SIZE", cell=_size("size_bytes"), is_number=True),
        Column(title="AGE", cell=_age("created_at"), is_number=True),
        Column(title="SOURCE", cell=_text("source"), is_wide=True, is_prose=True),
    ),
)


def _approved_template(item: Item, _: datetime) -> str:
    return str(item.get("approved_template") or ABSENT)[:12]


STAGES = View(
    name=_field("to"),
    empty="it has not moved; every version begins as a candidate",
    columns=(
        Column(title="AT", cell=lambda item, _: local_time(item.get("at"))),
        Column(title="FROM", cell=_text("from")),
        Column(title="TO", cell=_text("to")),
        Column(title="REASON", cell=_text("reason"), is_prose=True, is_optional=True),
        Column(title="APPROVED TEMPLATE", cell=_approved_template, is_optional=True),
    ),
)

EVENTS = View(
    name=lambda item: _shown(item.get("seq")),
    empty="no events",
    columns=(
        Column(title="AT", cell=lambda item, _: local_time(item.get("at"))),
        Column(title="KIND", cell=_text("kind")),
        Column(title="SUBJECT", cell=_text("subject")),
        Column(title="MESSAGE", cell=_text("message"), is_prose=True),
        Column(title="REASON", cell=_text("reason"), is_wide=True, is_prose=True),
    ),
)
