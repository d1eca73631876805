"""Models of engines that somebody else runs: registered as they appear, unavailable when they are gone, never deleted.

Comes in: what a node read of an adopted engine (through the reconcile loop). Goes out: models and versions without
files, whose format is the engine's name, whose source is `adopted:<node>/<name there>`. `core.sources` does not know
that scheme on purpose: nobody can type it, and no node is ever asked to fetch it.
"""

import re
from collections.abc import Iterator, Sequence

from controller.exchange import AdoptedModel, EngineFact
from controller.registry import adopted_store, alias_store, store
from controller.registry.model import NewVersion
from controller.registry.places import ADOPTED
from controller.registry.service import Registry
from core.errors import Failure
from core.infra import postgres
from core.names import NAME_PATTERN

_OTHER = re.compile(r"[^a-z0-9._-]+")
_LONGEST = 63


class AdoptedModels:
    """Keeps the registry in step with what nodes read."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def absorb(self, connection: postgres.Connection, node_name: str, facts: Sequence[EngineFact]) -> None:
        """Register the models of the engines that are adopted on a node, unless they are known."""
        for fact in facts:
            if fact.adopted is None or not fact.adopted.models:
                continue
            known = await adopted_store.names_of_format(connection, fact.engine)
            for model in fact.adopted.models:
                await self._register(connection, node_name, fact.engine, model, known)

    async def _register(
        self,
        connection: postgres.Connection,
        node_name: str,
        engine: str,
        model: AdoptedModel,
        known: frozenset[tuple[str, str]],
    ) -> None:
        digest = f"sha256:{model.sha256}"
        for name in model_names(model.name, engine, node_name):
            if (name, digest) in known:
                return
            if not await self._is_ours(connection, name, engine):
                continue
            new = NewVersion(
                digest=digest,
                source=f"{ADOPTED}{node_name}/{model.name}",
                files=(),
                format=engine,
                size_bytes=model.size_bytes,
                facts={
                    "format": engine,
                    "size_bytes": model.size_bytes,
                    "architecture": model.architecture,
                    "quantization": model.quantization,
                },
            )
            try:
                async with connection.transaction():
                    await self._registry.register(connection, name, new)
            except Failure:
                continue  # a model of that name is being deleted
            return

    async def _is_ours(self, connection: postgres.Connection, name: str, engine: str) -> bool:
        """Return whether `name` is free, or a model that holds nothing but what was adopted of this engine.

        A version that only one engine eats must not become the newest of a model that others serve.
        """
        if any(alias.name == name for alias in await alias_store.aliases(connection)):
            return False
        model = await store.model(connection, name)
        return model is None or await adopted_store.formats_of(connection, model.model_id) <= {engine}


def model_names(name: str, engine: str, node_name: str) -> Iterator[str]:
    """Yield the names that an adopted model may have here, best first: its own without `:latest`, then with a suffix.

    `qwen2.5:0.5b` is `qwen2.5-0.5b`; a name that is taken gets the engine's, then the node's behind it.
    """
    plain = name.lower().removesuffix(":latest")
    for suffix in ("", f"-{engine}", f"-{engine}-{node_name}"):
        fitting = _OTHER.sub("-", plain).strip("._-")[: _LONGEST - len(suffix)].rstrip("._-") or "model"
        candidate = f"{fitting}{suffix}"[:_LONGEST].rstrip("._-")
        if NAME_PATTERN.match(candidate):
            yield candidate
