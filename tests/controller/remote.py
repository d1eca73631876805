"""A machine that joins and a node that speaks over mTLS, played over real gRPC on TCP."""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from core.identities import Identity, Role
from core.infra import certificates
from core.infra.certificates import Request
from core.infra.grpc import CHANNEL_OPTIONS
from core.joining import JoinLine, parse_line
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode

CONTROLLER_NAME = Identity(cluster_id="clu_test", role=Role.CONTROLLER, name="0").dns_name


def free_ports() -> int:
    """Return a port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def identity(node_id: str = "nod_far", *, role: Role = Role.NODE, cluster_id: str = "clu_test") -> Identity:
    return Identity(cluster_id=cluster_id, role=role, name=node_id)


@dataclass(kw_only=True)
class Machine:
    """Another machine, before and after it has joined; `authority` is read from the controller's directory."""

    authority: Path
    port: int
    node_id: str = "nod_far"
    name: str = "far"
    machine_id: str = "m2"
    protocol: tuple[int, int] = (1, 1)
    request: Request | None = None
    certificate_pem: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def root(self) -> bytes:
        return self.authority.read_bytes()

    async def join(self, line: JoinLine, **fields: Any) -> pb.JoinReply:
        """Ask to join; a reply with a certificate is kept."""
        self.request = self.request or certificates.new_request(identity(self.node_id))
        asked = {
            "protocol_min": self.protocol[0],
            "protocol_max": self.protocol[1],
            "token_id": line.token_id,
            "token_secret": line.secret,
            "csr_pem": self.request.csr_pem,
            "node_id": self.node_id,
            "node_name": self.name,
            "machine_id": self.machine_id,
            "agent_version": "0.0.test",
            **fields,
        }
        credentials = grpc.ssl_channel_credentials(self.root())
        async with _channel(self.port + 1, credentials) as channel:
            stub: Any = node_pb2_grpc.NodeJoinStub(channel)
            reply: pb.JoinReply = await stub.Join(pb.JoinRequest(**asked), timeout=10)
        self.certificate_pem = reply.certificate_pem or self.certificate_pem
        return reply

    def channel(self, certificate_pem: str = "", key_pem: str = "") -> Any:
        """Return a channel to the port of joined nodes, under its own certificate or another one."""
        assert self.request is not None
        key = (key_pem or self.request.key_pem).encode()
        chain = (certificate_pem or self.certificate_pem).encode()
        return _channel(self.port, grpc.ssl_channel_credentials(self.root(), key, chain))


def _channel(port: int, credentials: grpc.ChannelCredentials) -> Any:
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", CONTROLLER_NAME))
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


class RemoteNode(PlayedNode):
    """A node agent on a machine that has joined."""

    def __init__(self, machine: Machine, *, node_id: str = "", channel: Any = None) -> None:
        super().__init__(
            Path("/nonexistent"),
            node_id=node_id or machine.node_id,
            name=machine.name,
            machine_id=machine.machine_id,
        )
        self.machine = machine
        self._given = channel

    def channel(self) -> Any:
        return self._given or self.machine.channel()


async def minted(cluster: Cluster, **body: Any) -> JoinLine:
    """Return the line of a fresh token."""
    return parse_line((await cluster.ok("POST", "nodes/tokens", body))["line"])
