"""How models, their versions and files, and pulls look in the admin API: pure, as `controller.api.views`."""

from controller.api.seeing import Seen
from controller.api.views import Json, instant
from controller.deployments.model import Deployment
from controller.exchange import FileReport
from controller.fleet.model import NodeRow
from controller.registry.catalog import CatalogEntry
from controller.registry.model import (
    Alias,
    CatalogueOfModels,
    Model,
    Pull,
    StageEvent,
    StoredPlace,
    Template,
    Version,
)
from controller.registry.places import ADOPTED
from controller.registry.stores import Collected
from core.ids import NodeId
from core.states import NodeState, PullState
from core.units import text_from_seconds


def catalog_entry(entry: CatalogEntry) -> Json:
    """Return one model of the catalogue."""
    return {
        "name": entry.name,
        "source": entry.source,
        "description": entry.description,
        "size_bytes": entry.size_bytes,
    }


def pull(row: Pull, seen: Seen) -> Json:
    """Return one pull; while it runs its bytes are those of the node's last report."""
    node = seen.live.get(NodeId(row.node_id)) if row.node_id else None
    report = _file_report(row, seen)
    is_open = row.finished_at is None
    done, total = row.bytes_done, row.bytes_total
    if is_open and report is not None:
        done, total = max(done, report.bytes_done), max(total, report.bytes_total)
    error = {"code": row.code, "message": row.message, "hint": row.hint} if row.code else None
    return {
        "id": row.pull_id,
        "model": row.model_name,
        "source": row.source,
        "engine": row.engine or None,
        "node": node.name if node else None,
        "state": row.state,
        "bytes_done": done,
        "bytes_total": total,
        "error": error,
        "created_at": instant(row.created_at),
        "finished_at": instant(row.finished_at),
        "waiting": _pull_waiting(row, seen, report, is_whole=0 < total <= done) if is_open else "",
    }


def _file_report(row: Pull, seen: Seen) -> FileReport | None:
    node = seen.live.get(NodeId(row.node_id)) if row.node_id else None
    files = node.observation.files if node and node.observation else ()
    return next((report for report in files if report.want_id == row.pull_id), None)


def _pull_waiting(row: Pull, seen: Seen, report: FileReport | None, *, is_whole: bool) -> str:
    node = seen.live.get(NodeId(row.node_id)) if row.node_id else None
    if node is None:
        if not seen.live:
            return "no node has joined this cluster yet"
        if any(one.state is NodeState.READY for one in seen.live.values()):
            return "it is about to be given to a node"
        silent = min(seen.live.values(), key=lambda one: one.silent_s)
        return f"no node is ready: {silent.name} has not been heard of for {text_from_seconds(silent.silent_s)}"
    if node.state is not NodeState.READY:
        return f"node {node.name} has not been heard of for {text_from_seconds(node.silent_s)}"
    if report is not None and report.message and report.state in (PullState.QUEUED, PullState.RUNNING):
        return report.message  # it pauses, and the node says why: a full disk, a server that asks to come later
    if row.state != PullState.RUNNING.value:
        return f"node {node.name} has been asked to bring it"
    return "the download is checked and unpacked" if is_whole else ""


def model(row: Model, every: CatalogueOfModels, deployments: tuple[Deployment, ...]) -> Json:
    """Return one model with its versions."""
    versions = [one for one in every.versions if one.model_id == row.model_id]
    return {
        "name": row.name,
        "resource_version": row.resource_version,
        "created_at": instant(row.created_at),
        "aliases": [alias.name for alias in every.aliases if alias.model == row.name],
        "deployments": [one.name for one in deployments if one.model == row.name and not one.is_deleting],
        "size_bytes": sum(one.size_bytes for one in versions),
        "versions": [version(one, every) for one in versions],
    }


def version(row: Version, every: CatalogueOfModels) -> Json:
    """Return one version of a model."""
    facts = row.facts
    holders = [one for one in every.holders if f"sha256:{one.sha256}" == row.digest and one.format == row.format]
    is_adopted = row.source.startswith(ADOPTED)
    return {
        "number": row.number,
        "id": row.version_id,
        "digest": row.digest,
        "stage": row.stage,
        "source": row.source,
        "format": row.format,
        "quantization": facts.get("quantization") or "",
        "architecture": facts.get("architecture") or "",
        "parameters": facts.get("parameters"),
        "context_length": facts.get("context_length"),
        "size_bytes": row.size_bytes,
        "chat_template_sha256": row.chat_template_sha256,
        "template_findings": list(row.template_findings),
        "created_at": instant(row.created_at),
        "adopted_on": sorted({one.node_name for one in holders}) if is_adopted else [],
        "is_available": bool(holders) or not is_adopted,
        "files": [
            {
                "path": file.path,
                "sha256": file.sha256,
                "size_bytes": file.size_bytes,
                "source": file.source or row.source,
                "nodes": [place.node_name for place in every.places if place.sha256 == file.sha256],
            }
            for file in every.files
            if file.version_id == row.version_id
        ],
    }


def template(row: Model, version: Version, found: Template) -> Json:
    """Return the chat template of one version."""
    return {
        "model": row.name,
        "version": version.number,
        "sha256": found.sha256,
        "text": found.text,
        "findings": list(found.findings),
    }


def stored(place: StoredPlace) -> Json:
    """Return one file of a node's store."""
    return {
        "node": place.node_name,
        "sha256": place.sha256,
        "size_bytes": place.size_bytes,
        "used_at": instant(place.used_at),
        "versions": list(place.versions),
        "is_leaving": place.is_leaving,
    }


def store_of(row: NodeRow, seen: Seen) -> Json:
    """Return how full one node's store is."""
    places = [place for place in seen.picture.stored if place.node_id == row.node_id]
    now = seen.live.get(NodeId(row.node_id))
    return {
        "node": row.name,
        "files": len(places),
        "size_bytes": sum(place.size_bytes for place in places),
        "unused_bytes": sum(place.size_bytes for place in places if not place.versions),
        "disk_free_bytes": now.disk_free_bytes if now else 0,
        "disk_total_bytes": row.disk_total_bytes,
    }


def collected(found: Collected, *, is_dry_run: bool) -> Json:
    """Return what goes, or would go, out of stores."""
    return {
        "dry_run": is_dry_run,
        "items": [stored(place) for place in found.items],
        "total_bytes": found.total_bytes,
        "kept": [stored(place) for place in found.kept],
    }


def stage_event(row: StageEvent) -> Json:
    """Return one move of a version between stages."""
    return {
        "at": instant(row.at),
        "from": row.from_stage,
        "to": row.to_stage,
        "reason": row.reason,
        "approved_template": row.approved_template,
    }


def alias(row: Alias) -> Json:
    """Return one alias; `version` is null where it stands for the whole model."""
    return {
        "name": row.name,
        "model": row.model,
        "version": row.version,
        "resource_version": row.resource_version,
    }
