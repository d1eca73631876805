"""The route table as the door holds it: an immutable snapshot of routes and keys, with its last copy on disk.

Comes in: `RouteTable` messages of the controller, or the file written after the last one. Goes out: `Table` values that
replace each other whole. Called by the watch (new tables), the app (look-ups) and at start (the file). It must not
reach the controller, and nothing here changes a table in place.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from core.errors import Failure
from core.ids import KeyId, ReplicaId
from core.infra.cluster import write_private
from core.origins import Origin, parse_base_url
from core.states import DisabledAnswer
from gateway.places import Address, Plane
from protos.slice.routes.v1 import routes_pb2

FILE_FORMAT = 1
Spawn = tuple[ReplicaId, int]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One replica that answers a route, and the key its engine asks for; `origin` is set when it runs elsewhere."""

    replica_id: ReplicaId
    incarnation: int
    host: str
    port: int
    engine_key: str = field(repr=False)
    origin: Origin | None = None
    plane: Plane | None = None
    """Set when it is on another machine: that machine's data plane, through which alone it is reached."""

    @property
    def spawn(self) -> Spawn:
        """Which start of which replica it is."""
        return self.replica_id, self.incarnation

    @property
    def address(self) -> Address:
        """Where its connections go."""
        return Address(
            host=self.host,
            port=self.port,
            replica_id=self.replica_id,
            incarnation=self.incarnation,
            origin=self.origin,
            plane=self.plane,
        )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One share of a route: `route` is the public name of another route of the same table."""

    route: str
    weight: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a route's model, for the lists that clients show; 0 and "" where nothing is.

    `digest` is 64 hexadecimal digits; `served_context` are the tokens that its engines take, `context_length` those
    that it was made for; `memory_bytes` are promised to one replica, `device_bytes` of them elsewhere than on the CPU.
    """

    digest: str = ""
    size_bytes: int = 0
    format: str = ""
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    context_length: int = 0
    served_context: int = 0
    embedding_length: int = 0
    capabilities: frozenset[str] = frozenset()
    memory_bytes: int = 0
    device_bytes: int = 0


_NO_CARD = Card()


@dataclass(frozen=True, kw_only=True)
class Route:
    """One public name; without targets nothing serves it now and `waiting` says why in one sentence.

    `disabled` is "" while an operator lets it serve, else a `core.states.DisabledAnswer`. One with `arms` has no
    targets of its own. `sticky` is "", `key`, `user` or `session`, `affinity` "" or `prefix`; `fallbacks` are names of
    routes. An internal one is there for arms and fallbacks, and no client may name it.
    """

    public_name: str
    deployment: str
    served_name: str
    engine: str
    endpoints: frozenset[str]
    targets: tuple[Target, ...]
    waiting: str
    created_unix_s: int
    disabled: str = ""
    model: str = ""
    version: int = 0
    stage: str = ""
    arms: tuple[Arm, ...] = ()
    sticky: str = ""
    salt: int = 0
    fallbacks: tuple[str, ...] = ()
    affinity: str = ""
    is_internal: bool = False
    card: Card = _NO_CARD

    @property
    def is_hidden(self) -> bool:
        """Whether clients are to be told that there is no such model."""
        return self.is_internal or self.disabled == DisabledAnswer.NOT_FOUND


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """What is known of one API key; `expires_unix_s` is 0 for never, a limit 0 for none.

    `stage` is that of the versions it is served by, "" for whichever; `models` are the public names that it may ask
    for, none means all; `weight` is its share where keys wait for each other.
    """

    kid: KeyId
    digest: bytes = field(repr=False)
    project: str
    expires_unix_s: int
    is_revoked: bool
    max_concurrent: int = 0
    requests_per_minute: int = 0
    stage: str = ""
    models: frozenset[str] = frozenset()
    weight: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything the door serves by; version 0 means that no controller was ever heard."""

    version: int
    routes: Mapping[str, Route]
    keys: Mapping[KeyId, KeyEntry]

    def visible(self) -> Mapping[str, Route]:
        """Return the routes that clients may know of."""
        return {name: route for name, route in self.routes.items() if not route.is_hidden}

    def has_planes(self) -> bool:
        """Return whether some replica is on another machine."""
        return any(target.plane is not None for route in self.routes.values() for target in route.targets)

    def replica_ids(self) -> frozenset[ReplicaId]:
        """Return every replica that some route names."""
        return frozenset(target.replica_id for route in self.routes.values() for target in route.targets)


EMPTY = Table(version=0, routes={}, keys={})


def table_from(message: routes_pb2.RouteTable) -> Table:
    """Return the snapshot that `message` describes."""
    routes = {
        route.public_name: Route(
            public_name=route.public_name,
            deployment=route.deployment,
            served_name=route.served_name or route.public_name,
            engine=route.engine,
            endpoints=frozenset(route.endpoints),
            targets=tuple(found for target in route.targets if (found := _target_from(target)) is not None),
            waiting=route.waiting,
            created_unix_s=route.created_unix_s,
            disabled=route.disabled,
            model=route.model,
            version=route.version,
            stage=route.stage,
            arms=tuple(Arm(route=arm.route, weight=arm.weight) for arm in route.arms),
            sticky=route.sticky,
            salt=route.salt,
            fallbacks=tuple(route.fallbacks),
            affinity=route.affinity,
            is_internal=route.is_internal,
            card=_card_from(route.card),
        )
        for route in message.routes
    }
    keys = {
        KeyId(key.kid): KeyEntry(
            kid=KeyId(key.kid),
            digest=key.digest,
            project=key.project,
            expires_unix_s=key.expires_unix_s,
            is_revoked=key.is_revoked,
            max_concurrent=key.max_concurrent,
            requests_per_minute=key.requests_per_minute,
            stage=key.stage,
            models=frozenset(key.models),
            weight=max(1, key.weight),
        )
        for key in message.keys
    }
    return Table(version=message.version, routes=routes, keys=keys)


def _card_from(card: routes_pb2.Card) -> Card:
    return Card(
        digest=card.digest,
        size_bytes=card.size_bytes,
        format=card.format,
        architecture=card.architecture,
        quantization=card.quantization,
        parameters=card.parameters,
        context_length=card.context_length,
        served_context=card.served_context,
        embedding_length=card.embedding_length,
        capabilities=frozenset(card.capabilities),
        memory_bytes=card.memory_bytes,
        device_bytes=card.device_bytes,
    )


def _target_from(target: routes_pb2.Target) -> Target | None:
    try:
        origin = parse_base_url(target.base_url) if target.base_url else None
    except Failure:
        return None  # one that this release may not reach: the others of the route serve on
    return Target(
        replica_id=ReplicaId(target.replica_id),
        incarnation=target.incarnation,
        host=target.host,
        port=target.port,
        engine_key=target.engine_key,
        origin=origin,
        plane=Plane(node_id=target.node_id, host=target.plane_host, port=target.plane_port)
        if target.plane_host
        else None,
    )


def save_copy(file: Path, message: routes_pb2.RouteTable) -> None:
    """Write `message` to `file` at mode 0600, whole or not at all; blocks, so call it in a thread."""
    text = base64.b64encode(message.SerializeToString()).decode()
    record = {"format": FILE_FORMAT, "version": message.version, "table": text}
    write_private(file, json.dumps(record) + "\n")


def load_copy(file: Path) -> routes_pb2.RouteTable | None:
    """Return the last table written to `file`, or None when there is none yet.

    Raises:
        Failure: `settings.unreadable` when it cannot be read or was written by a newer release.
    """
    try:
        record = json.loads(file.read_text())
        if record["format"] != FILE_FORMAT:
            raise ValueError("unknown format")
        return routes_pb2.RouteTable.FromString(base64.b64decode(record["table"], validate=True))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise Failure(
            "settings.unreadable",
            f"the last route table in {file} cannot be read",
            hint="the door waits for the controller; remove the file if this message stays",
        ) from error
