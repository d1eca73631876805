"""Fact sheets: one thing of the admin API in full, for `slice show`, `slice node show` and `slice status`.

Pure: API objects come in, labelled texts and part tables go out.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cli.human import ABSENT, age, count_text, local_time, size
from cli.tables import Column, Facts, Item, View, table
from cli.views import DEPLOYMENTS, VERSIONS, node_state, placement, version_label

_FILES = View(
    name=lambda item: str(item.get("path")),
    empty="",
    columns=(
        Column(title="PATH", cell=lambda item, _: str(item.get("path") or ABSENT)),
        Column(title="SIZE", cell=lambda item, _: size(item.get("size_bytes")), is_number=True),
        Column(title="ON NODES", cell=lambda item, _: ", ".join(item.get("nodes") or []) or ABSENT),
        Column(title="SHA256", cell=lambda item, _: str(item.get("sha256") or ABSENT), is_wide=True),
    ),
)

_DEVICES = View(
    name=lambda item: str(item.get("id")),
    empty="",
    columns=(
        Column(title="ID", cell=lambda item, _: str(item.get("id") or ABSENT)),
        Column(title="KIND", cell=lambda item, _: str(item.get("kind") or ABSENT)),
        Column(title="NAME", cell=lambda item, _: _device_name(item), is_prose=True),
        Column(title="TOTAL", cell=lambda item, _: size(item.get("total_bytes")), is_number=True),
        Column(title="FREE", cell=lambda item, _: size(item.get("free_bytes")), is_number=True),
        Column(title="PROMISED", cell=lambda item, _: size(item.get("promised_bytes")), is_number=True),
        Column(title="BUSY", cell=lambda item, _: _percent(item.get("utilisation")), is_number=True),
        Column(title="TEMP", cell=lambda item, _: _with_unit(item.get("temperature_c"), " °C"), is_number=True),
        Column(title="POWER", cell=lambda item, _: _with_unit(item.get("power_w"), " W"), is_number=True),
    ),
)

_LEAVING = View(
    name=lambda item: str(item.get("id")),
    empty="",
    columns=(
        Column(title="ID", cell=lambda item, _: str(item.get("id") or ABSENT)),
        Column(title="NAME", cell=lambda item, _: str(item.get("deployment") or ABSENT)),
        Column(title="WAITS FOR", cell=lambda item, _: str(item.get("waiting") or ABSENT), is_prose=True),
    ),
)

_ENGINES = View(
    name=lambda item: str(item.get("engine")),
    empty="",
    columns=(
        Column(title="ENGINE", cell=lambda item, _: str(item.get("engine") or ABSENT)),
        Column(title="USABLE", cell=lambda item, _: "yes" if item.get("is_usable") else "no"),
        Column(title="ON", cell=lambda item, _: ", ".join(item.get("device_kinds") or []) or ABSENT),
        Column(title="INSTALLED", cell=lambda item, _: ", ".join(item.get("installed_versions") or []) or ABSENT),
        Column(title="REASON", cell=lambda item, _: str(item.get("reason") or ABSENT), is_prose=True, is_optional=True),
    ),
)


def _device_name(device: Item) -> str:
    return f"{device.get('name') or ABSENT}{' (simulated)' if device.get('is_simulated') else ''}"


def _percent(share: object) -> str:
    return f"{100 * share:.0f}%" if isinstance(share, int | float) else ABSENT


def _with_unit(number: object, unit: str) -> str:
    return f"{number:.0f}{unit}" if isinstance(number, int | float) else ABSENT


def _text(value: object) -> str:
    return ABSENT if value is None or value in ("", [], {}) else str(value)


def model_facts(model: Item, deployments: Sequence[Item], now: datetime, *, version: Item, is_wide: bool) -> Facts:
    """Return the sheet of a model: the facts and files of `version`, all its versions and its deployments."""
    return Facts(
        facts=(
            ("name", _text(model.get("name"))),
            ("version", version_label(version.get("number"))),
            ("stage", _text(version.get("stage"))),
            ("digest", _text(version.get("digest"))),
            ("source", _text(version.get("source"))),
            ("architecture", _text(version.get("architecture"))),
            ("parameters", count_text(version.get("parameters"))),
            ("quantization", _text(version.get("quantization"))),
            ("format", _text(version.get("format"))),
            ("context length", _text(version.get("context_length"))),
            ("size", size(version.get("size_bytes"))),
            ("chat template", _template(version)),
            ("aliases", ", ".join(model.get("aliases") or []) or ABSENT),
            ("age", age(model.get("created_at"), now)),
        ),
        parts=(
            ("versions", table(VERSIONS, model.get("versions") or [], now, is_wide=is_wide)),
            ("files", table(_FILES, version.get("files") or [], now, is_wide=is_wide)),
            ("deployments", table(DEPLOYMENTS, deployments, now, is_wide=is_wide)),
            *((f"settings of {item.get('name')}", _settings(item, now)) for item in deployments),
        ),
    )


def _template(version: Item) -> str:
    """Return the digest of a version's chat template and what is odd in it."""
    digest = str(version.get("chat_template_sha256") or "")
    findings = "; ".join(str(finding) for finding in version.get("template_findings") or [])
    return _text(f"sha256:{digest[:12]}" + (f" ({findings})" if findings else "")) if digest else ABSENT


def _settings(deployment: Item, now: datetime) -> Any:
    settings = deployment.get("settings") or {}
    pairs = [{"key": key, "value": v if isinstance(v, str) else json.dumps(v)} for key, v in settings.items()]
    view = View(
        name=lambda item: str(item["key"]),
        empty="",
        columns=(
            Column(title="SETTING", cell=lambda item, _: str(item["key"])),
            Column(title="VALUE", cell=lambda item, _: str(item["value"])),
        ),
    )
    return table(view, pairs, now, is_wide=False)


def node_facts(node: Item, now: datetime, *, is_wide: bool) -> Facts:
    """Return the sheet of a node: the machine, its devices and its engines."""
    seen, measured = node.get("last_seen_s_ago"), node.get("measured_s_ago")
    labels = ", ".join(f"{key}={value}" for key, value in (node.get("labels") or {}).items())
    return Facts(
        facts=(
            ("name", _text(node.get("name"))),
            ("id", _text(node.get("id"))),
            ("state", node_state(node)),
            ("seen", f"{seen:.1f}s ago" if isinstance(seen, int | float) else ABSENT),
            ("measured", f"{measured:.1f}s ago" if isinstance(measured, int | float) else ABSENT),
            ("protocol", _text(node.get("protocol"))),
            ("placement", _placement(node)),
            ("replicas", _text(node.get("replicas"))),
            ("certificate", _certificate(node)),
            (
                "machine",
                f"{_text(node.get('system'))} {_text(node.get('machine'))}, host {_text(node.get('hostname'))}",
            ),
            ("cpus", _text(node.get("cpu_count"))),
            ("memory", size(node.get("memory_bytes"))),
            ("disk", f"{size(node.get('disk_free_bytes'))} free of {size(node.get('disk_total_bytes'))}"),
            ("labels", labels or ABSENT),
            ("node agent", _text(node.get("agent_version"))),
            ("generation", f"{_text(node.get('applied_generation'))} of {_text(node.get('generation'))} applied"),
        ),
        parts=(
            ("leaving it", table(_LEAVING, (node.get("drain") or {}).get("replicas") or [], now, is_wide=is_wide)),
            ("devices", table(_DEVICES, node.get("devices") or [], now, is_wide=is_wide)),
            ("engines", table(_ENGINES, node.get("engines") or [], now, is_wide=is_wide)),
        ),
    )


def _listener(found: object) -> str:
    if not isinstance(found, dict):
        return "cannot join; `slice up --node-host ADDRESS` lets them"
    return f"join at {found.get('host')}, ports {found.get('port')} and {found.get('join_port')}"


def _placement(node: Item) -> str:
    drain = node.get("drain") or {}
    forced = ", by force" if drain.get("is_forced") else ""
    return f"{placement(node)} since {local_time(drain.get('since'))}{forced}" if drain else placement(node)


def _certificate(node: Item) -> str:
    ends = node.get("certificate_expires_at")
    return f"ends {local_time(ends)}" if ends else ABSENT


def status_facts(status: Item) -> Facts:
    """Return the sheet of the whole cluster."""

    def ready(key: str) -> str:
        counts = status.get(key) or {}
        return f"{counts.get('ready', 0)} of {counts.get('total', 0)} ready"

    brake = str(status.get("brake") or "")
    return Facts(
        facts=(
            ("cluster", _text(status.get("cluster_id"))),
            ("version", _text(status.get("version"))),
            ("nodes", ready("nodes")),
            *((("brake", brake),) if brake else ()),
            ("deployments", ready("deployments")),
            ("replicas", ready("replicas")),
            ("front doors", f"{_text(status.get('doors'))}, routes at version {_text(status.get('route_version'))}"),
            ("OpenAI base URL", _text(status.get("openai_base_url"))),
            ("other machines", _listener(status.get("node_listener"))),
            ("leader epoch", _text(status.get("leader_epoch"))),
            ("schema", _text(status.get("schema"))),
        )
    )
