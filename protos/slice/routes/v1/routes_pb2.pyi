from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UsageBatch(_message.Message):
    __slots__ = ("door_id", "rows", "lost_rows")
    DOOR_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOST_ROWS_FIELD_NUMBER: _ClassVar[int]
    door_id: str
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    lost_rows: int
    def __init__(self, door_id: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., lost_rows: _Optional[int] = ...) -> None: ...

class UsageReceipt(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("row_id", "request_id", "trace_id", "kid", "project", "public_name", "arm", "model", "version", "deployment", "replica_id", "node_id", "endpoint", "is_stream", "outcome", "code", "status", "input_tokens", "output_tokens", "cached_tokens", "is_estimated", "started_unix_us", "first_byte_us", "total_us", "attempts")
    ROW_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_NAME_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    IS_STREAM_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IS_ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_BYTE_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    row_id: str
    request_id: str
    trace_id: str
    kid: str
    project: str
    public_name: str
    arm: str
    model: str
    version: int
    deployment: str
    replica_id: str
    node_id: str
    endpoint: str
    is_stream: bool
    outcome: str
    code: str
    status: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    is_estimated: bool
    started_unix_us: int
    first_byte_us: int
    total_us: int
    attempts: int
    def __init__(self, row_id: _Optional[str] = ..., request_id: _Optional[str] = ..., trace_id: _Optional[str] = ..., kid: _Optional[str] = ..., project: _Optional[str] = ..., public_name: _Optional[str] = ..., arm: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., deployment: _Optional[str] = ..., replica_id: _Optional[str] = ..., node_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., is_stream: _Optional[bool] = ..., outcome: _Optional[str] = ..., code: _Optional[str] = ..., status: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., is_estimated: _Optional[bool] = ..., started_unix_us: _Optional[int] = ..., first_byte_us: _Optional[int] = ..., total_us: _Optional[int] = ..., attempts: _Optional[int] = ...) -> None: ...

class CertifyRequest(_message.Message):
    __slots__ = ("door_id", "csr_pem")
    DOOR_ID_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    door_id: str
    csr_pem: str
    def __init__(self, door_id: _Optional[str] = ..., csr_pem: _Optional[str] = ...) -> None: ...

class CertifyReply(_message.Message):
    __slots__ = ("code", "message", "cluster_id", "certificate_pem", "authority_pem")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    cluster_id: str
    certificate_pem: str
    authority_pem: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., cluster_id: _Optional[str] = ..., certificate_pem: _Optional[str] = ..., authority_pem: _Optional[str] = ...) -> None: ...

class DoorReport(_message.Message):
    __slots__ = ("door_id", "applied_version", "loads", "demand")
    class DemandEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DOOR_ID_FIELD_NUMBER: _ClassVar[int]
    APPLIED_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    door_id: str
    applied_version: int
    loads: _containers.RepeatedCompositeFieldContainer[ReplicaLoad]
    demand: _containers.ScalarMap[str, int]
    def __init__(self, door_id: _Optional[str] = ..., applied_version: _Optional[int] = ..., loads: _Optional[_Iterable[_Union[ReplicaLoad, _Mapping]]] = ..., demand: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ReplicaLoad(_message.Message):
    __slots__ = ("replica_id", "in_flight")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    in_flight: int
    def __init__(self, replica_id: _Optional[str] = ..., in_flight: _Optional[int] = ...) -> None: ...

class RouteTable(_message.Message):
    __slots__ = ("version", "routes", "keys", "revoked_serials")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_SERIALS_FIELD_NUMBER: _ClassVar[int]
    version: int
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    keys: _containers.RepeatedCompositeFieldContainer[KeyEntry]
    revoked_serials: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., keys: _Optional[_Iterable[_Union[KeyEntry, _Mapping]]] = ..., revoked_serials: _Optional[_Iterable[str]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("public_name", "deployment", "served_name", "engine", "endpoints", "targets", "waiting", "created_unix_s", "disabled", "model", "version", "stage", "arms", "sticky", "salt", "fallbacks", "affinity", "is_internal", "card")
    PUBLIC_NAME_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    STICKY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    AFFINITY_FIELD_NUMBER: _ClassVar[int]
    IS_INTERNAL_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    public_name: str
    deployment: str
    served_name: str
    engine: str
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    waiting: str
    created_unix_s: int
    disabled: str
    model: str
    version: int
    stage: str
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    sticky: str
    salt: int
    fallbacks: _containers.RepeatedScalarFieldContainer[str]
    affinity: str
    is_internal: bool
    card: Card
    def __init__(self, public_name: _Optional[str] = ..., deployment: _Optional[str] = ..., served_name: _Optional[str] = ..., engine: _Optional[str] = ..., endpoints: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., waiting: _Optional[str] = ..., created_unix_s: _Optional[int] = ..., disabled: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., stage: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ..., sticky: _Optional[str] = ..., salt: _Optional[int] = ..., fallbacks: _Optional[_Iterable[str]] = ..., affinity: _Optional[str] = ..., is_internal: _Optional[bool] = ..., card: _Optional[_Union[Card, _Mapping]] = ...) -> None: ...

class Card(_message.Message):
    __slots__ = ("digest", "size_bytes", "format", "architecture", "quantization", "parameters", "context_length", "served_context", "embedding_length", "capabilities", "memory_bytes", "device_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SERVED_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    format: str
    architecture: str
    quantization: str
    parameters: int
    context_length: int
    served_context: int
    embedding_length: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    device_bytes: int
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., format: _Optional[str] = ..., architecture: _Optional[str] = ..., quantization: _Optional[str] = ..., parameters: _Optional[int] = ..., context_length: _Optional[int] = ..., served_context: _Optional[int] = ..., embedding_length: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ...) -> None: ...

class Arm(_message.Message):
    __slots__ = ("route", "weight")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    route: str
    weight: int
    def __init__(self, route: _Optional[str] = ..., weight: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("replica_id", "incarnation", "host", "port", "engine_key", "base_url", "node_id", "plane_host", "plane_port")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PLANE_HOST_FIELD_NUMBER: _ClassVar[int]
    PLANE_PORT_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    incarnation: int
    host: str
    port: int
    engine_key: str
    base_url: str
    node_id: str
    plane_host: str
    plane_port: int
    def __init__(self, replica_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., engine_key: _Optional[str] = ..., base_url: _Optional[str] = ..., node_id: _Optional[str] = ..., plane_host: _Optional[str] = ..., plane_port: _Optional[int] = ...) -> None: ...

class KeyEntry(_message.Message):
    __slots__ = ("kid", "digest", "project", "expires_unix_s", "is_revoked", "max_concurrent", "requests_per_minute", "stage", "models", "weight")
    KID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    IS_REVOKED_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    kid: str
    digest: bytes
    project: str
    expires_unix_s: int
    is_revoked: bool
    max_concurrent: int
    requests_per_minute: int
    stage: str
    models: _containers.RepeatedScalarFieldContainer[str]
    weight: int
    def __init__(self, kid: _Optional[str] = ..., digest: _Optional[bytes] = ..., project: _Optional[str] = ..., expires_unix_s: _Optional[int] = ..., is_revoked: _Optional[bool] = ..., max_concurrent: _Optional[int] = ..., requests_per_minute: _Optional[int] = ..., stage: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., weight: _Optional[int] = ...) -> None: ...
