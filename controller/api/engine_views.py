"""How engines look in the admin API: pure functions from adapters, rows and live state to docs/admin-api.md.

Comes in: an adapter and what one request sees. Goes out: the Engine object with every node's installs. What a node says
now stands before what its row says, and wishes that it has not answered yet stand beside both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from adapters import floors
from adapters.contract import Adapter, Adoptable
from controller.api.seeing import Seen
from controller.engines.choosing import is_program
from controller.engines.model import EngineWant
from controller.fleet.model import NodeRow
from core.ids import NodeId
from core.states import InstallState, NodeState
from core.versions import newest_first

Json = dict[str, Any]


def engine(adapter: Adapter, seen: Seen) -> Json:
    """Return one engine: what it can, and where which of its versions is."""
    chosen = next((row for row in seen.picture.engine_defaults if row.engine == adapter.name), None)
    default = chosen.version if chosen else "" if is_program(adapter) else adapter.default_version
    floor = floors.floor_of(adapter)
    return {
        "name": adapter.name,
        "versions": list(adapter.versions),
        "default_version": default,
        "previous_version": chosen.previous if chosen else "",
        "is_program": is_program(adapter),
        "is_adoptable": isinstance(adapter, Adoptable),
        "formats": sorted(adapter.formats),
        "endpoints": sorted(one.value for one in adapter.endpoints({})),
        "capabilities": sorted(one.value for one in adapter.capabilities({})),
        "runtimes": sorted(one.value for one in adapter.runtimes),
        "floor": {"version": floor[0], "advisories": floor[1]} if floor else None,
        "deployments": sorted(
            row.name for row in seen.picture.deployments if row.engine == adapter.name and not row.is_deleting
        ),
        "nodes": [_node(adapter, row, seen, default) for row in seen.picture.nodes if row.node_id in seen.live],
    }


def _node(adapter: Adapter, row: NodeRow, seen: Seen, default: str) -> Json:
    now = seen.live[NodeId(row.node_id)]
    fact = _fact(adapter.name, row, seen)
    wants = {
        want.version: want
        for want in seen.picture.engine_wants
        if (want.node_id, want.engine) == (row.node_id, adapter.name) and not want.adopt_url
    }
    reported = {str(one["version"]): one for one in fact.get("installs") or ()}
    waiting = (
        "it has been told" if now.state is NodeState.READY else f"the node is {now.state.value}: it hears of it later"
    )
    queued = {
        version: _absent(version, waiting)
        for version, want in wants.items()
        if version not in reported and not want.is_removed
    }
    every = {**queued, **reported}
    return {
        "node": row.name,
        "state": now.state.value,
        "is_usable": bool(fact.get("is_usable")),
        "reason": str(fact.get("reason") or ""),
        "device_kinds": list(fact.get("device_kinds") or ()),
        "installs": [
            {
                **_install(every[version], wants.get(version)),
                "is_default": version == default or (not default and version == newest_first(every)[0]),
                "warning": floors.below_floor(adapter, version),
                "deployments": _users(
                    adapter.name, {version, "" if version == newest_first(every)[0] else version}, row.node_id, seen
                ),
            }
            for version in newest_first(every)
        ],
        "adopted": _adopted(adapter.name, row, fact, seen),
    }


def _fact(name: str, row: NodeRow, seen: Seen) -> Mapping[str, Any]:
    observation = seen.live[NodeId(row.node_id)].observation
    for fact in observation.engines if observation else ():
        if fact.engine == name:
            return asdict(fact)
    return next((fact for fact in row.engines if fact["engine"] == name), {})


def _absent(version: str, message: str) -> Json:
    return {"version": version, "state": InstallState.QUEUED.value, "message": message}


def _install(reported: Mapping[str, Any], want: EngineWant | None) -> Json:
    state, message = str(reported["state"]), str(reported.get("message") or "")
    code = str(reported.get("code") or "")
    if want is not None and want.is_removed and _is_not_yet_removed(state, message, code):
        state, message, code = InstallState.REMOVING.value, "the node is about to remove it", ""
    return {
        "version": reported["version"],
        "state": state,
        "code": code,
        "message": message,
        "digest": str(reported.get("digest") or ""),
        "size_bytes": int(reported.get("size_bytes") or 0),
        "is_wanted": want is not None and not want.is_removed,
        "source": want.source if want else "",
    }


def _is_not_yet_removed(state: str, message: str, code: str) -> bool:
    """Return whether a report is older than the wish to remove: why an install failed is no word on its removal."""
    if state == InstallState.FAILED.value:
        return code != "engine.remove_failed"
    return state == InstallState.READY.value and not message


def _users(name: str, versions: set[str], node_id: str, seen: Seen) -> list[str]:
    """Return the deployments with a replica of one of `versions` on a node; "" is the newest program there."""
    owners = {row.deployment_id: row.name for row in seen.picture.deployments}
    return sorted(
        {
            owners[row.deployment_id]
            for row in seen.picture.replicas
            if (row.engine, row.node_id) == (name, node_id) and row.engine_version in versions
        }
    )


def _adopted(name: str, row: NodeRow, fact: Mapping[str, Any], seen: Seen) -> Json | None:
    wants: Sequence[EngineWant] = [
        want
        for want in seen.picture.engine_wants
        if (want.node_id, want.engine) == (row.node_id, name) and want.adopt_url
    ]
    if not wants:
        return None
    found = fact.get("adopted")
    if not found:
        return {"base_url": wants[0].adopt_url, "version": "", "models": [], "message": "it has not been read yet"}
    return {
        "base_url": str(found["base_url"]),
        "version": str(found["version"]),
        "models": [
            {"name": one["name"], "digest": f"sha256:{one['sha256']}", "size_bytes": one["size_bytes"]}
            for one in found["models"]
        ],
        "message": str(found["message"]),
    }
