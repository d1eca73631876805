"""Who calls a gRPC method: on the unix socket whoever had the bearer token, elsewhere the holder of a certificate.

Comes in: a call's context. Goes out: the holder, or None for the unix socket. Called by every method that joined nodes
reach; that the certificate is signed by our authority and valid now was seen by TLS.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from controller.identity.certificates import Certificates
from core.errors import Failure
from core.identities import Role
from core.infra.certificates import Holder, holder_of


def node_holder(context: Any, certificates: Certificates) -> Holder | None:
    """Return the node whose certificate this call came by, or None on the unix socket.

    Raises:
        Failure: `node.certificate_invalid`: of a door, of another cluster, or revoked.
    """
    holder = any_node_holder(context, certificates)
    if holder is not None and certificates.is_revoked(holder.serial):
        raise revoked(holder)
    return holder


def any_node_holder(context: Any, certificates: Certificates) -> Holder | None:
    """Return what `node_holder` does, a node whose certificate was revoked included.

    Raises:
        Failure: `node.certificate_invalid`: of a door, or of another cluster.
    """
    facts: Mapping[str, Sequence[bytes]] = context.auth_context()
    if facts.get("transport_security_type") != [b"ssl"]:
        return None
    holder = holder_of(b"".join(facts.get("x509_pem_cert", ())).decode("ascii", "replace"))
    if holder.identity != certificates.identity(Role.NODE, holder.identity.name):
        raise Failure(
            "node.certificate_invalid",
            f"a certificate of {holder.identity.uri} is not one of a node of this cluster",
            hint="join this cluster with `slice node join`",
        )
    return holder


def revoked(holder: Holder) -> Failure:
    """Return why a node whose certificate was revoked is not served."""
    return Failure(
        "node.certificate_invalid",
        f"the certificate of node {holder.identity.name} was revoked",
        hint="join again with `slice node join`, or look with `slice events` who forgot it",
    )


def address_of(peer: str) -> str:
    """Return the number in gRPC's name of a peer, e.g. `10.0.0.7` of `ipv4:10.0.0.7:51234`."""
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
