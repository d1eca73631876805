"""What a replica needs of a device, and where that number came from."""

from dataclasses import dataclass
from enum import StrEnum


class Provenance(StrEnum):
    """Where a footprint's number came from, best first."""

    MEASURED = "measured"  # read off a running engine of the same version and settings
    COMPUTED = "computed"  # derived from the model file's header and the settings
    UNKNOWN = "unknown"  # nobody knows: never zero, the scheduler refuses unless told the bytes


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that one replica needs on one device, by part; `total_bytes` is None exactly when unknown."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    overhead_bytes: int
    provenance: Provenance

    @property
    def total_bytes(self) -> int | None:
        """The sum of the parts, or None when the provenance is `unknown`."""
        if self.provenance is Provenance.UNKNOWN:
            return None
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.overhead_bytes


NO_FOOTPRINT = Footprint(
    weights_bytes=0, kv_cache_bytes=0, compute_bytes=0, overhead_bytes=0, provenance=Provenance.COMPUTED
)
"""Of an engine that runs elsewhere: no device here gives it anything."""

UNKNOWN_FOOTPRINT = Footprint(
    weights_bytes=0, kv_cache_bytes=0, compute_bytes=0, overhead_bytes=0, provenance=Provenance.UNKNOWN
)
