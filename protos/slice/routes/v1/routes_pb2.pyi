from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("public_name", "deployment", "served_name", "engine", "endpoints", "targets", "waiting", "created_unix_s", "disabled")
    PUBLIC_NAME_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    public_name: str
    deployment: str
    served_name: str
    engine: str
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    waiting: str
    created_unix_s: int
    disabled: str
    def __init__(self, public_name: _Optional[str] = ..., deployment: _Optional[str] = ..., served_name: _Optional[str] = ..., engine: _Optional[str] = ..., endpoints: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., waiting: _Optional[str] = ..., created_unix_s: _Optional[int] = ..., disabled: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("kid", "digest", "project", "expires_unix_s", "is_revoked")
    KID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    IS_REVOKED_FIELD_NUMBER: _ClassVar[int]
    kid: str
    digest: bytes
    project: str
    expires_unix_s: int
    is_revoked: bool
    def __init__(self, kid: _Optional[str] = ..., digest: _Optional[bytes] = ..., project: _Optional[str] = ..., expires_unix_s: _Optional[int] = ..., is_revoked: _Optional[bool] = ...) -> None: ...
