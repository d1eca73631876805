"""From slice.node.v1 to the fleet's values: what a node says is checked and bounded here, then trusted.

Comes in: protobuf from nodes. Goes out: frozen values (what nodes are told is `controller.api.node_orders`). Texts are
cut and stripped of what PostgreSQL cannot hold; unknown words are a `Failure`, not a guess.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from controller.exchange import (
    AdoptedEngine,
    AdoptedModel,
    EngineFact,
    EngineInstall,
    FileReport,
    Observation,
    ReplicaReport,
    VersionFile,
)
from controller.fleet.model import Goodbye, Heartbeat, Hello, Inventory, NodeMessage
from controller.fleet.session import Telemetry
from core.devices import DeviceKind, DeviceReading
from core.errors import Failure
from core.ids import DeviceId, NodeId, PullId, ReplicaId, Sha256
from core.origins import is_host
from core.states import InstallState, PullState, ReplicaState
from protos.slice.node.v1 import node_pb2 as pb

_TEXT_MAX = 2000
_FACTS_MAX = 64 * 1024
_LOG_LINES = 20
_VERSION_FILES_MAX = 2000
_PATH_MAX = 1024
_TEMPLATE_MAX = 256 * 1024
_FINDINGS_MAX = 50
_DEVICES_MAX = 64
_ENGINES_MAX = 64
_INSTALLS_MAX = 50
_ADOPTED_MAX = 500
_BIGINT_MAX = 2**63 - 1
_INT_MAX = 2**31 - 1
_KINDS = frozenset(kind.value for kind in DeviceKind)
_HEX = frozenset("0123456789abcdef")

Word = TypeVar("Word", ReplicaState, PullState, DeviceKind, InstallState)


def hello(message: pb.Hello) -> Hello:
    """Return a node's hello.

    Raises:
        Failure: `request.invalid_field`.
    """
    node_id = text(message.node_id, 80)
    if not node_id or not message.machine_id:
        raise _invalid("node_id and machine_id must be given")
    facts = message.inventory
    return Hello(
        protocol_min=message.protocol_min,
        protocol_max=message.protocol_max,
        node_id=NodeId(node_id),
        node_name=text(message.node_name, 80),
        machine_id=text(message.machine_id, 200),
        boot_id=text(message.boot_id, 200),
        agent_run_id=text(message.agent_run_id, 200),
        agent_version=text(message.agent_version, 80),
        max_leader_epoch_seen=message.max_leader_epoch_seen,
        inventory=Inventory(
            hostname=text(facts.hostname, 255),
            system=text(facts.system, 80),
            machine=text(facts.machine, 80),
            cpu_count=min(facts.cpu_count, _INT_MAX),
            memory_bytes=_size(facts.memory_bytes),
            disk_total_bytes=_size(facts.disk_total_bytes),
            disk_free_bytes=_size(facts.disk_free_bytes),
            devices=_devices(facts.devices),
            engines=tuple(_engine(fact) for fact in facts.engines[:_ENGINES_MAX]),
        ),
        observation=observation(NodeId(node_id), message.observed),
        labels=_labels(message.labels),
        plane_host=_plane_host(message),
        plane_port=message.plane_port,
    )


def node_message(node_id: NodeId, message: pb.NodeMessage) -> NodeMessage | None:
    """Return what a node says within its session, or None for a kind of message that a newer release may add.

    Raises:
        Failure: `request.invalid_field`.
    """
    kind = message.WhichOneof("body")
    if kind == "heartbeat":
        beat = message.heartbeat
        return Heartbeat(
            sequence=beat.sequence,
            applied_generation=_size(beat.applied_generation),
            devices=_devices(beat.devices),
            disk_free_bytes=_size(beat.disk_free_bytes),
        )
    if kind == "observed":
        return observation(node_id, message.observed)
    if kind == "goodbye":
        return Goodbye(reason=text(message.goodbye.reason, 200))
    if kind == "hello":
        raise _invalid("a session has one hello")
    return None


def telemetry(message: pb.Telemetry) -> Telemetry:
    """Return what a node measures.

    Raises:
        Failure: `request.invalid_field`.
    """
    return Telemetry(devices=_devices(message.devices), disk_free_bytes=_size(message.disk_free_bytes))


def observation(node_id: NodeId, message: pb.Observed) -> Observation:
    """Return everything a node holds.

    Raises:
        Failure: `request.invalid_field`.
    """
    return Observation(
        node_id=node_id,
        applied_generation=_size(message.applied_generation),
        replicas=tuple(_replica(report) for report in message.replicas),
        files=tuple(_file(report) for report in message.files),
        engines=tuple(_engine(fact) for fact in message.engines),
    )


def _replica(report: pb.ReplicaReport) -> ReplicaReport:
    if report.port > 65535:
        raise _invalid("a port is at most 65535")
    return ReplicaReport(
        replica_id=ReplicaId(text(report.replica_id, 80)),
        incarnation=min(report.incarnation, _INT_MAX),
        state=_word(ReplicaState, report.state),
        code=text(report.code, 80),
        message=text(report.message, _TEXT_MAX),
        log_tail=tuple(text(line, _TEXT_MAX) for line in report.log_tail[-_LOG_LINES:]),
        pid=min(report.pid, _INT_MAX),
        host=text(report.host, 255),
        port=report.port,
        load_s=_seconds(report.load_s),
        memory_bytes=_size(report.memory_bytes),
        restarts=min(report.restarts, _INT_MAX),
        retry_in_s=_seconds(report.retry_in_s),
        base_url=text(report.base_url, _TEXT_MAX),
    )


def _file(report: pb.FileReport) -> FileReport:
    state = _word(PullState, report.state)
    try:
        return _checked_file(report, state)
    except Failure as failure:
        if not report.want_id:
            raise
        # Names and texts of strangers are no fault of the node's: their pull fails, and its session goes on.
        return FileReport(
            want_id=PullId(text(report.want_id, 80)),
            state=PullState.FAILED,
            code=failure.code,
            message=failure.message,
        )


def _checked_file(report: pb.FileReport, state: PullState) -> FileReport:
    if len(report.facts_json) > _FACTS_MAX:
        raise _invalid("the facts of a file are too long")
    if len(report.chat_template) > _TEMPLATE_MAX:
        raise _invalid("a chat template is too long")
    files = _version_files(report.version_files)
    return FileReport(
        want_id=PullId(text(report.want_id, 80)),
        state=state,
        bytes_done=_size(report.bytes_done),
        bytes_total=_size(report.bytes_total),
        sha256=_digest(report.sha256) if report.sha256 else None,
        size_bytes=_size(report.size_bytes),
        facts_json=report.facts_json,
        code=text(report.code, 80),
        message=text(report.message, _TEXT_MAX),
        chat_template_sha256=text(report.chat_template_sha256, 64),
        version_files=files,
        chat_template=text(report.chat_template, _TEMPLATE_MAX),
        template_findings=tuple(text(finding, 500) for finding in report.template_findings[:_FINDINGS_MAX]),
        resolved_source=text(report.resolved_source, _TEXT_MAX),
        used_unix_s=max(0, min(report.used_unix_s, _INT_MAX)),
    )


def _version_files(files: Sequence[pb.VersionFile]) -> tuple[VersionFile, ...]:
    if len(files) > _VERSION_FILES_MAX:
        raise _invalid(f"a version has at most {_VERSION_FILES_MAX} files")
    if len({file.path for file in files}) != len(files):
        raise _invalid("two files of a version have one path")
    return tuple(
        VersionFile(
            path=_path(file.path),
            sha256=_digest(file.sha256),
            size_bytes=_size(file.size_bytes),
            source=text(file.source, _TEXT_MAX),
        )
        for file in files
    )


def _path(path: str) -> str:
    """Return a path that stays below the directory it is used in: no root, no step upwards, no odd character."""
    parts = path.split("/")
    if len(path) > _PATH_MAX or any(part in ("", ".", "..") for part in parts) or not path.isprintable():
        raise _invalid("the path of a version's file is relative, printable, and has no empty part, `.` or `..`")
    return path


def _digest(digest: str) -> Sha256:
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise _invalid("a digest is 64 lower-case hexadecimal digits")
    return Sha256(digest)


def _devices(readings: Iterable[pb.DeviceReading]) -> tuple[DeviceReading, ...]:
    return tuple(_device(reading) for reading in list(readings)[:_DEVICES_MAX])


def _device(reading: pb.DeviceReading) -> DeviceReading:
    return DeviceReading(
        device_id=DeviceId(text(reading.device_id, 200)),
        kind=_word(DeviceKind, reading.kind),
        name=text(reading.name, 200),
        total_bytes=_size(reading.total_bytes),
        free_bytes=_size(reading.free_bytes),
        utilisation=_seconds(reading.utilisation) if reading.HasField("utilisation") else None,
        temperature_c=_finite(reading.temperature_c) if reading.HasField("temperature_c") else None,
        power_w=_seconds(reading.power_w) if reading.HasField("power_w") else None,
        is_simulated=reading.is_simulated,
    )


def _engine(fact: pb.EngineFact) -> EngineFact:
    kinds = tuple(kind for kind in fact.device_kinds if kind in _KINDS)
    return EngineFact(
        engine=text(fact.engine, 80),
        is_usable=fact.is_usable,
        reason=text(fact.reason, _TEXT_MAX),
        device_kinds=kinds,
        installed_versions=tuple(text(version, 80) for version in fact.installed_versions[:_INSTALLS_MAX]),
        installs=tuple(_install(install) for install in fact.installs[:_INSTALLS_MAX]),
        adopted=_adopted(fact.adopted) if fact.HasField("adopted") else None,
    )


def _install(install: pb.EngineInstall) -> EngineInstall:
    return EngineInstall(
        version=text(install.version, 80),
        state=_word(InstallState, install.state),
        code=text(install.code, 80),
        message=text(install.message, _TEXT_MAX),
        digest=text(install.digest, 64),
        size_bytes=_size(install.size_bytes),
    )


def _adopted(adopted: pb.AdoptedEngine) -> AdoptedEngine:
    return AdoptedEngine(
        base_url=text(adopted.base_url, 200),
        version=text(adopted.version, 80),
        models=tuple(
            AdoptedModel(
                name=text(model.name, 200),
                sha256=Sha256(model.sha256),
                size_bytes=_size(model.size_bytes),
                format=text(model.format, 40),
                architecture=text(model.architecture, 80),
                quantization=text(model.quantization, 40),
            )
            for model in adopted.models[:_ADOPTED_MAX]
            if model.name and len(model.sha256) == 64 and _HEX.issuperset(model.sha256)
        ),
        message=text(adopted.message, _TEXT_MAX),
    )


def _plane_host(message: pb.Hello) -> str:
    """Return where the node's data plane is: an address or a name that doors and peers will dial.

    Raises:
        Failure: `request.invalid_field`.
    """
    host = text(message.plane_host, 255)
    if bool(host) != (0 < message.plane_port <= 65535):
        raise _invalid("plane_host and plane_port belong together")
    if host and not is_host(host):
        raise _invalid("plane_host is no address and no name")
    return host


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {text(key, 80): text(labels[key], 200) for key in sorted(labels)[:64]}


def text(given: str, longest: int) -> str:
    """Return `given` without NULs, cut at `longest` characters."""
    return given.replace("\x00", "")[:longest]


def _size(count: int) -> int:
    return min(count, _BIGINT_MAX)


def _finite(number: float) -> float:
    return number if -1e12 < number < 1e12 else 0.0


def _seconds(number: float) -> float:
    return max(0.0, _finite(number))


def _word(kind: type[Word], text: str) -> Word:
    try:
        return kind(text)
    except ValueError:
        raise _invalid(f"{text[:40]!r} is no {kind.__name__}") from None


def _invalid(what: str) -> Failure:
    return Failure("request.invalid_field", f"the node agent's message is not right: {what}")
