"""Names in the cluster's certificates: who a process is, and what a client must be told to check.

Pure text. A certificate has one URI, `slice://CLUSTER/ROLE/NAME`, and that alone says who its holder is; its DNS name
is what TLS clients compare, since their libraries know no URIs. Addresses are in no certificate: they may change.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What the holder of a certificate may be."""

    CONTROLLER = "controller"
    NODE = "node"
    DOOR = "door"


_URI = re.compile(r"slice://([A-Za-z0-9_-]{1,64})/(controller|node|door)/([A-Za-z0-9_-]{1,64})\Z")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One process of one cluster; `name` is a node's or door's id, `0` for the controller."""

    cluster_id: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """The certificate's URI."""
        return f"slice://{self.cluster_id}/{self.role.value}/{self.name}"

    @property
    def dns_name(self) -> str:
        """The certificate's DNS name; resolved by nobody."""
        return f"{self.name.replace('_', '-').lower()}.{self.role.value}.slice"


def identity_of(uri: str) -> Identity | None:
    """Return who a certificate's URI names, or None when it is none of ours."""
    found = _URI.match(uri)
    return Identity(cluster_id=found[1], role=Role(found[2]), name=found[3]) if found else None
