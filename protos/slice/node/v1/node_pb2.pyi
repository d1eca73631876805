from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "token_id", "token_secret", "csr_pem", "node_id", "node_name", "machine_id", "agent_version")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    token_id: str
    token_secret: str
    csr_pem: str
    node_id: str
    node_name: str
    machine_id: str
    agent_version: str
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., token_id: _Optional[str] = ..., token_secret: _Optional[str] = ..., csr_pem: _Optional[str] = ..., node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., machine_id: _Optional[str] = ..., agent_version: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("reject", "cluster_id", "certificate_pem", "authority_pem", "node_name", "is_approved")
    REJECT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    IS_APPROVED_FIELD_NUMBER: _ClassVar[int]
    reject: Reject
    cluster_id: str
    certificate_pem: str
    authority_pem: str
    node_name: str
    is_approved: bool
    def __init__(self, reject: _Optional[_Union[Reject, _Mapping]] = ..., cluster_id: _Optional[str] = ..., certificate_pem: _Optional[str] = ..., authority_pem: _Optional[str] = ..., node_name: _Optional[str] = ..., is_approved: _Optional[bool] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr_pem",)
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    csr_pem: str
    def __init__(self, csr_pem: _Optional[str] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("reject", "certificate_pem", "authority_pem")
    REJECT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    reject: Reject
    certificate_pem: str
    authority_pem: str
    def __init__(self, reject: _Optional[_Union[Reject, _Mapping]] = ..., certificate_pem: _Optional[str] = ..., authority_pem: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("is_final",)
    IS_FINAL_FIELD_NUMBER: _ClassVar[int]
    is_final: bool
    def __init__(self, is_final: _Optional[bool] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("reject", "is_gone", "remaining")
    REJECT_FIELD_NUMBER: _ClassVar[int]
    IS_GONE_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    reject: Reject
    is_gone: bool
    remaining: _containers.RepeatedCompositeFieldContainer[Remaining]
    def __init__(self, reject: _Optional[_Union[Reject, _Mapping]] = ..., is_gone: _Optional[bool] = ..., remaining: _Optional[_Iterable[_Union[Remaining, _Mapping]]] = ...) -> None: ...

class Remaining(_message.Message):
    __slots__ = ("replica_id", "deployment", "waiting", "is_stuck")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    IS_STUCK_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    deployment: str
    waiting: str
    is_stuck: bool
    def __init__(self, replica_id: _Optional[str] = ..., deployment: _Optional[str] = ..., waiting: _Optional[str] = ..., is_stuck: _Optional[bool] = ...) -> None: ...

class NodeMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "observed", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    observed: Observed
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., observed: _Optional[_Union[Observed, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class ControllerMessage(_message.Message):
    __slots__ = ("hello_ack", "heartbeat_ack", "desired", "log_request", "reject", "revoked")
    HELLO_ACK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_ACK_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    LOG_REQUEST_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    hello_ack: HelloAck
    heartbeat_ack: HeartbeatAck
    desired: Desired
    log_request: LogRequest
    reject: Reject
    revoked: Revoked
    def __init__(self, hello_ack: _Optional[_Union[HelloAck, _Mapping]] = ..., heartbeat_ack: _Optional[_Union[HeartbeatAck, _Mapping]] = ..., desired: _Optional[_Union[Desired, _Mapping]] = ..., log_request: _Optional[_Union[LogRequest, _Mapping]] = ..., reject: _Optional[_Union[Reject, _Mapping]] = ..., revoked: _Optional[_Union[Revoked, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "node_id", "node_name", "machine_id", "boot_id", "agent_run_id", "agent_version", "max_leader_epoch_seen", "inventory", "observed", "labels", "plane_host", "plane_port")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_LEADER_EPOCH_SEEN_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PLANE_HOST_FIELD_NUMBER: _ClassVar[int]
    PLANE_PORT_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    node_id: str
    node_name: str
    machine_id: str
    boot_id: str
    agent_run_id: str
    agent_version: str
    max_leader_epoch_seen: int
    inventory: Inventory
    observed: Observed
    labels: _containers.ScalarMap[str, str]
    plane_host: str
    plane_port: int
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., machine_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., agent_run_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., max_leader_epoch_seen: _Optional[int] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., observed: _Optional[_Union[Observed, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., plane_host: _Optional[str] = ..., plane_port: _Optional[int] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("hostname", "system", "machine", "cpu_count", "memory_bytes", "disk_total_bytes", "disk_free_bytes", "devices", "engines")
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    system: str
    machine: str
    cpu_count: int
    memory_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceReading]
    engines: _containers.RepeatedCompositeFieldContainer[EngineFact]
    def __init__(self, hostname: _Optional[str] = ..., system: _Optional[str] = ..., machine: _Optional[str] = ..., cpu_count: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disk_total_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceReading, _Mapping]]] = ..., engines: _Optional[_Iterable[_Union[EngineFact, _Mapping]]] = ...) -> None: ...

class DeviceReading(_message.Message):
    __slots__ = ("device_id", "kind", "name", "total_bytes", "free_bytes", "utilisation", "temperature_c", "power_w", "is_simulated")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    IS_SIMULATED_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    kind: str
    name: str
    total_bytes: int
    free_bytes: int
    utilisation: float
    temperature_c: float
    power_w: float
    is_simulated: bool
    def __init__(self, device_id: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., utilisation: _Optional[float] = ..., temperature_c: _Optional[float] = ..., power_w: _Optional[float] = ..., is_simulated: _Optional[bool] = ...) -> None: ...

class EngineFact(_message.Message):
    __slots__ = ("engine", "is_usable", "reason", "device_kinds", "installed_versions", "installs", "adopted")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    IS_USABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KINDS_FIELD_NUMBER: _ClassVar[int]
    INSTALLED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    INSTALLS_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    engine: str
    is_usable: bool
    reason: str
    device_kinds: _containers.RepeatedScalarFieldContainer[str]
    installed_versions: _containers.RepeatedScalarFieldContainer[str]
    installs: _containers.RepeatedCompositeFieldContainer[EngineInstall]
    adopted: AdoptedEngine
    def __init__(self, engine: _Optional[str] = ..., is_usable: _Optional[bool] = ..., reason: _Optional[str] = ..., device_kinds: _Optional[_Iterable[str]] = ..., installed_versions: _Optional[_Iterable[str]] = ..., installs: _Optional[_Iterable[_Union[EngineInstall, _Mapping]]] = ..., adopted: _Optional[_Union[AdoptedEngine, _Mapping]] = ...) -> None: ...

class EngineInstall(_message.Message):
    __slots__ = ("version", "state", "code", "message", "digest", "size_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    state: str
    code: str
    message: str
    digest: str
    size_bytes: int
    def __init__(self, version: _Optional[str] = ..., state: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class AdoptedEngine(_message.Message):
    __slots__ = ("base_url", "version", "models", "message")
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    base_url: str
    version: str
    models: _containers.RepeatedCompositeFieldContainer[AdoptedModel]
    message: str
    def __init__(self, base_url: _Optional[str] = ..., version: _Optional[str] = ..., models: _Optional[_Iterable[_Union[AdoptedModel, _Mapping]]] = ..., message: _Optional[str] = ...) -> None: ...

class AdoptedModel(_message.Message):
    __slots__ = ("name", "sha256", "size_bytes", "format", "architecture", "quantization")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size_bytes: int
    format: str
    architecture: str
    quantization: str
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., format: _Optional[str] = ..., architecture: _Optional[str] = ..., quantization: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "applied_generation", "devices", "disk_free_bytes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    applied_generation: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceReading]
    disk_free_bytes: int
    def __init__(self, sequence: _Optional[int] = ..., applied_generation: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceReading, _Mapping]]] = ..., disk_free_bytes: _Optional[int] = ...) -> None: ...

class Telemetry(_message.Message):
    __slots__ = ("node_id", "session_epoch", "devices", "disk_free_bytes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    session_epoch: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceReading]
    disk_free_bytes: int
    def __init__(self, node_id: _Optional[str] = ..., session_epoch: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceReading, _Mapping]]] = ..., disk_free_bytes: _Optional[int] = ...) -> None: ...

class TelemetryReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Observed(_message.Message):
    __slots__ = ("applied_generation", "replicas", "files", "engines")
    APPLIED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    applied_generation: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaReport]
    files: _containers.RepeatedCompositeFieldContainer[FileReport]
    engines: _containers.RepeatedCompositeFieldContainer[EngineFact]
    def __init__(self, applied_generation: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaReport, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[FileReport, _Mapping]]] = ..., engines: _Optional[_Iterable[_Union[EngineFact, _Mapping]]] = ...) -> None: ...

class ReplicaReport(_message.Message):
    __slots__ = ("replica_id", "incarnation", "state", "code", "message", "log_tail", "pid", "host", "port", "load_s", "memory_bytes", "restarts", "retry_in_s", "exit_code", "exit_signal", "base_url")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_IN_S_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    EXIT_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    incarnation: int
    state: str
    code: str
    message: str
    log_tail: _containers.RepeatedScalarFieldContainer[str]
    pid: int
    host: str
    port: int
    load_s: float
    memory_bytes: int
    restarts: int
    retry_in_s: float
    exit_code: int
    exit_signal: int
    base_url: str
    def __init__(self, replica_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., state: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., log_tail: _Optional[_Iterable[str]] = ..., pid: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., load_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., restarts: _Optional[int] = ..., retry_in_s: _Optional[float] = ..., exit_code: _Optional[int] = ..., exit_signal: _Optional[int] = ..., base_url: _Optional[str] = ...) -> None: ...

class FileReport(_message.Message):
    __slots__ = ("want_id", "state", "bytes_done", "bytes_total", "sha256", "size_bytes", "facts_json", "code", "message", "chat_template_sha256", "version_files", "chat_template", "template_findings", "resolved_source", "used_unix_s")
    WANT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FACTS_JSON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    VERSION_FILES_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FINDINGS_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_SOURCE_FIELD_NUMBER: _ClassVar[int]
    USED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    want_id: str
    state: str
    bytes_done: int
    bytes_total: int
    sha256: str
    size_bytes: int
    facts_json: str
    code: str
    message: str
    chat_template_sha256: str
    version_files: _containers.RepeatedCompositeFieldContainer[VersionFile]
    chat_template: str
    template_findings: _containers.RepeatedScalarFieldContainer[str]
    resolved_source: str
    used_unix_s: int
    def __init__(self, want_id: _Optional[str] = ..., state: _Optional[str] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., facts_json: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., chat_template_sha256: _Optional[str] = ..., version_files: _Optional[_Iterable[_Union[VersionFile, _Mapping]]] = ..., chat_template: _Optional[str] = ..., template_findings: _Optional[_Iterable[str]] = ..., resolved_source: _Optional[str] = ..., used_unix_s: _Optional[int] = ...) -> None: ...

class VersionFile(_message.Message):
    __slots__ = ("path", "sha256", "size_bytes", "source")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    size_bytes: int
    source: str
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class HelloAck(_message.Message):
    __slots__ = ("leader_epoch", "session_epoch", "heartbeat_ms", "lease_ms", "fence_ms", "protocol", "telemetry_ms", "redial_ms")
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    FENCE_MS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_MS_FIELD_NUMBER: _ClassVar[int]
    REDIAL_MS_FIELD_NUMBER: _ClassVar[int]
    leader_epoch: int
    session_epoch: int
    heartbeat_ms: int
    lease_ms: int
    fence_ms: int
    protocol: int
    telemetry_ms: int
    redial_ms: int
    def __init__(self, leader_epoch: _Optional[int] = ..., session_epoch: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., lease_ms: _Optional[int] = ..., fence_ms: _Optional[int] = ..., protocol: _Optional[int] = ..., telemetry_ms: _Optional[int] = ..., redial_ms: _Optional[int] = ...) -> None: ...

class HeartbeatAck(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Desired(_message.Message):
    __slots__ = ("leader_epoch", "generation", "replicas", "files", "engines", "removed_files")
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FILES_FIELD_NUMBER: _ClassVar[int]
    leader_epoch: int
    generation: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaWant]
    files: _containers.RepeatedCompositeFieldContainer[FileWant]
    engines: _containers.RepeatedCompositeFieldContainer[EngineWant]
    removed_files: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, leader_epoch: _Optional[int] = ..., generation: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaWant, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[FileWant, _Mapping]]] = ..., engines: _Optional[_Iterable[_Union[EngineWant, _Mapping]]] = ..., removed_files: _Optional[_Iterable[str]] = ...) -> None: ...

class EngineWant(_message.Message):
    __slots__ = ("engine", "version", "source", "is_removed", "adopt_url")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    IS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    ADOPT_URL_FIELD_NUMBER: _ClassVar[int]
    engine: str
    version: str
    source: str
    is_removed: bool
    adopt_url: str
    def __init__(self, engine: _Optional[str] = ..., version: _Optional[str] = ..., source: _Optional[str] = ..., is_removed: _Optional[bool] = ..., adopt_url: _Optional[str] = ...) -> None: ...

class ReplicaWant(_message.Message):
    __slots__ = ("replica_id", "deployment", "served_name", "engine", "engine_version", "settings_json", "files", "devices", "engine_key", "desired", "runtime", "image")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_KEY_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    deployment: str
    served_name: str
    engine: str
    engine_version: str
    settings_json: str
    files: _containers.RepeatedCompositeFieldContainer[FileWant]
    devices: _containers.RepeatedCompositeFieldContainer[DevicePromise]
    engine_key: str
    desired: str
    runtime: str
    image: str
    def __init__(self, replica_id: _Optional[str] = ..., deployment: _Optional[str] = ..., served_name: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., settings_json: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileWant, _Mapping]]] = ..., devices: _Optional[_Iterable[_Union[DevicePromise, _Mapping]]] = ..., engine_key: _Optional[str] = ..., desired: _Optional[str] = ..., runtime: _Optional[str] = ..., image: _Optional[str] = ...) -> None: ...

class DevicePromise(_message.Message):
    __slots__ = ("device_id", "bytes")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    bytes: int
    def __init__(self, device_id: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class FileWant(_message.Message):
    __slots__ = ("want_id", "source", "sha256", "size_bytes", "is_cancelled", "path", "formats", "peers")
    WANT_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    want_id: str
    source: str
    sha256: str
    size_bytes: int
    is_cancelled: bool
    path: str
    formats: _containers.RepeatedScalarFieldContainer[str]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    def __init__(self, want_id: _Optional[str] = ..., source: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., is_cancelled: _Optional[bool] = ..., path: _Optional[str] = ..., formats: _Optional[_Iterable[str]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("node_id", "host", "port")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    host: str
    port: int
    def __init__(self, node_id: _Optional[str] = ..., host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("serials",)
    SERIALS_FIELD_NUMBER: _ClassVar[int]
    serials: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, serials: _Optional[_Iterable[str]] = ...) -> None: ...

class LogRequest(_message.Message):
    __slots__ = ("request_id", "replica_id", "tail_lines", "follow", "cancel")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    replica_id: str
    tail_lines: int
    follow: bool
    cancel: bool
    def __init__(self, request_id: _Optional[str] = ..., replica_id: _Optional[str] = ..., tail_lines: _Optional[int] = ..., follow: _Optional[bool] = ..., cancel: _Optional[bool] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("request_id", "text", "is_last", "code", "message")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: bytes
    is_last: bool
    code: str
    message: str
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[bytes] = ..., is_last: _Optional[bool] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class LogReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reject(_message.Message):
    __slots__ = ("code", "message", "hint", "is_fatal", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    IS_FATAL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    hint: str
    is_fatal: bool
    retry_after_ms: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., is_fatal: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...
