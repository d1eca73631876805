"""Which engine serves a deployment and with what: pure.

Comes in: what an operator asked for, and the facts of the model's version. Goes out: the adapter, and a `Spec` that was
checked against it. Called by `controller.deployments.service`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters import checking, registry
from adapters.contract import Adapter, Capability, ModelFacts, Runtime
from controller.deployments import runtime as runtimes
from controller.deployments.model import footprint_json
from core.errors import Failure
from core.names import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a replica is started with, all of it checked."""

    engine: str
    engine_version: str
    settings: Mapping[str, Any]
    footprint: Mapping[str, Any]
    requires: tuple[str, ...]


def checked_capabilities(words: Iterable[str]) -> frozenset[Capability]:
    """Return the capabilities that `words` name.

    Raises:
        Failure: `request.invalid_field` for a word that names none, with the closest one.
    """
    known = {one.value: one for one in Capability}
    for word in words:
        if word not in known:
            raise Failure(
                "request.invalid_field",
                f"there is no capability {word[:80]!r}.{did_you_mean(word, known)}",
                hint=f"known: {', '.join(known)}",
                param="requires",
            )
    return frozenset(known[word] for word in words)


def chosen_adapter(
    engine: str | None,
    facts: ModelFacts,
    *,
    requires: frozenset[Capability] = frozenset(),
    settings: Mapping[str, Any] | None = None,
) -> Adapter:
    """Return the adapter named `engine`, or the first that eats the model's format and has all of `requires`.

    An adapter that also serves without any file is for drills: it is the choice for the empty format only.

    Raises:
        Failure: `engine.unknown`, `engine.format_unsupported`, `engine.capability_missing`.
    """
    given = settings or {}
    if engine is not None:
        adapter = registry.adapter(engine)
        if facts.format not in adapter.formats:
            raise _unsupported(f"engine {engine} does not serve", facts.format)
        if not requires <= _able(adapter, given, facts):
            raise missing(adapter, requires, given, facts)
        return adapter
    fitting = [adapter for adapter in registry.adapters() if facts.format in adapter.formats]
    if facts.format:
        fitting = [adapter for adapter in fitting if not _is_drill(adapter)]
    if not fitting:
        raise _unsupported("no engine serves", facts.format)
    for adapter in fitting:
        if requires <= _able(adapter, given, facts):
            return adapter
    raise missing(fitting[0], requires, given, facts)


def checked_spec(
    adapter: Adapter,
    engine_version: str,
    facts: ModelFacts,
    *,
    settings: Mapping[str, Any],
    requires: frozenset[Capability],
    runtime: Runtime = Runtime.PROCESS,
) -> Spec:
    """Return the spec of a deployment of a model with `facts` on `adapter`; settings get their defaults.

    Raises:
        Failure: `engine.format_unsupported`, `engine.setting_invalid`, `engine.setting_reserved`,
            `engine.capability_missing`.
    """
    if facts.format not in adapter.formats:
        raise _unsupported(f"engine {adapter.name} does not serve", facts.format)
    whole = checking.checked_settings(adapter, settings, facts)
    if not requires <= adapter.capabilities(whole):
        raise missing(adapter, requires, settings, facts)
    runtimes.check_remote(adapter, runtime, whole)
    return Spec(
        engine=adapter.name,
        engine_version=engine_version,
        settings=whole,
        footprint=footprint_json(runtimes.footprint_under(runtime, adapter.footprint(facts, whole))),
        requires=tuple(sorted(one.value for one in requires)),
    )


def checked_engine_version(adapter: Adapter, asked: str, installed: Iterable[str]) -> str:
    """Return `asked` when this release knows how to install it or some node has it.

    Raises:
        Failure: `engine.version_unknown`, with the versions that exist.
    """
    there = sorted(set(installed) - set(adapter.versions))
    known = (*adapter.versions, *there)
    if asked in known:
        return asked
    raise Failure(
        "engine.version_unknown",
        f"{adapter.name} has no version {asked!r} here.{did_you_mean(asked, known)}",
        hint=f"known versions: {', '.join(known)}",
        param="engine_version",
    )


def given_settings(adapter: Adapter, settings: Mapping[str, Any], facts: ModelFacts | None) -> dict[str, Any]:
    """Return those of a deployment's whole `settings` that differ from the defaults for a model with `facts`."""
    defaults = checking.checked_settings(adapter, {}, facts)
    return {name: value for name, value in settings.items() if name in defaults and value != defaults[name]}


def missing(
    adapter: Adapter, requires: frozenset[Capability], settings: Mapping[str, Any], facts: ModelFacts
) -> Failure:
    """Return the failure of an engine without all that is required; it names the engines that have it."""
    lacking = ", ".join(sorted(one.value for one in requires - _able(adapter, settings, facts)))
    able = [
        one
        for one in registry.adapters()
        if one.name != adapter.name and not _is_drill(one) and requires <= _able(one, {}, facts)
    ]
    eating = [one.name for one in able if facts.format in one.formats]
    others = [f"{one.name} (eats {', '.join(sorted(filter(None, one.formats))) or 'no files'})" for one in able]
    switch = _switch(adapter, requires, settings, facts)
    if switch:
        hint = f"{adapter.name} has it with --set {switch}"
    elif eating:
        hint = f"engines that have all of it and serve this model: {', '.join(eating)}"
    elif others:
        hint = f"no engine that serves this model has all of it; others do: {', '.join(others)}"
    else:
        hint = "no engine of this release has all of it"
    return Failure(
        "engine.capability_missing", f"engine {adapter.name} lacks for this: {lacking}", hint=hint, param="requires"
    )


def _able(adapter: Adapter, settings: Mapping[str, Any], facts: ModelFacts) -> frozenset[Capability]:
    """Return what an engine can do under these settings, or under its defaults where it does not know them."""
    try:
        return adapter.capabilities(checking.checked_settings(adapter, settings, facts))
    except Failure:
        return adapter.capabilities(checking.checked_settings(adapter, {}, facts))


def _switch(
    adapter: Adapter, requires: frozenset[Capability], settings: Mapping[str, Any], facts: ModelFacts
) -> str | None:
    """Return the one switch of the engine, as `name=true`, that would give it all that is required."""
    for spec in adapter.setting_specs:
        if spec.kind is not bool:
            continue
        turned = not settings.get(spec.name, spec.default)
        if requires <= _able(adapter, {**settings, spec.name: turned}, facts):
            return f"{spec.name}={str(turned).lower()}"
    return None


def _is_drill(adapter: Adapter) -> bool:
    """Return whether an engine also serves without any file: nobody means it who has a file."""
    return "" in adapter.formats


def _unsupported(who: str, model_format: str) -> Failure:
    what = f"the format {model_format!r}" if model_format else "a model without a file"
    real = [adapter for adapter in registry.adapters() if not _is_drill(adapter)]
    known = ", ".join(f"{adapter.name} ({', '.join(sorted(adapter.formats))})" for adapter in real)
    hint = (
        f"engines and what they serve: {known}; `slice pull NAME --source SOURCE --engine ENGINE` brings what one eats"
    )
    return Failure("engine.format_unsupported", f"{who} {what}", hint=hint, param="engine")
