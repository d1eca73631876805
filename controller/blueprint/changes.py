"""What has to change so that a cluster becomes what a blueprint says: pure.

Comes in: the blueprint that is wanted and the one that the cluster is now, both with settings that differ from defaults
alone. Goes out: changes in the order in which they can be made. Called by `controller.blueprint.service`, again after
each round: a change that is made may let the next one be made.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from controller.blueprint.model import (
    Action,
    Alias,
    Blueprint,
    Change,
    Deployment,
    FieldChange,
    Kind,
    Model,
    Version,
    Way,
)
from core.errors import Failure
from core.names import did_you_mean, version_text

_BUILTIN = "builtin:"
_FIELDS = (
    "model",
    "number",
    "engine",
    "engine_version",
    "replicas",
    "settings",
    "requires",
    "is_enabled",
    "disabled_answer",
    "runtime",
    "image",
    "node",
    "secret",
)


def changes(wanted: Blueprint, current: Blueprint, *, prune: bool = False) -> tuple[Change, ...]:
    """Return what has to change, in order: versions, stages, deployments, aliases, then what goes.

    With `prune` what a section of `wanted` does not name is deleted, once nothing waits for a pull any more; a section
    that `wanted` does not have keeps all that is there.

    Raises:
        Failure: `registry.model_not_found` or `registry.version_not_found` for what is neither wanted nor there.
    """
    here = _Here(current)
    found: list[Change] = []
    for model in wanted.models or ():
        found += _in_order([change for version in model.versions for change in _of_version(model, version, here)])
    numbers = Numbers(wanted, current)
    for deployment in wanted.deployments or ():
        found += _of_deployment(deployment, here, numbers)
    for alias in wanted.aliases or ():
        found += _of_alias(alias, here, numbers)
    if prune and not any(change.is_waiting for change in found):
        found += _pruned(wanted, here)
    return tuple(found)


def _in_order(changes: list[Change]) -> list[Change]:
    """Return the changes of one model's versions: none is made before an earlier one, so that numbers stay in order."""
    is_waiting = False
    ordered = []
    for change in changes:
        is_waiting = is_waiting or change.is_waiting
        is_new = change.action is Action.CREATE
        ordered.append(dataclasses.replace(change, is_waiting=is_waiting) if is_new else change)
    return ordered


class _Here:
    """The cluster as it is, by name."""

    def __init__(self, current: Blueprint) -> None:
        self.models = {model.name: model for model in current.models or ()}
        self.aliases = {alias.name: alias for alias in current.aliases or ()}
        self.deployments = {deployment.name: deployment for deployment in current.deployments or ()}
        self.digests = {version.digest for model in self.models.values() for version in model.versions}

    def version(self, model: str, wanted: Version) -> Version | None:
        """Return the version of `model` with the content of `wanted`.

        1. By its digest.
        2. Without one, the newest that came of its source, which may since have been pinned: a tag or a branch that
           means something else by now is asked again by nobody who has what it once meant.
        """
        there = self.models[model].versions if model in self.models else ()
        if wanted.digest:
            return next((one for one in there if one.digest == wanted.digest), None)
        plain = wanted.source.partition("#")[0]
        came = [one for one in there if wanted.source in one.asked or one.source.partition("#")[0] == plain]
        return came[-1] if came else None


class Numbers:
    """From the numbers of versions in a file to those of the cluster."""

    def __init__(self, wanted: Blueprint, current: Blueprint) -> None:
        self._wanted = {model.name: model for model in wanted.models or ()}
        self._here = _Here(current)

    def of(self, model: str, number: int | None, line: int) -> tuple[int | None, bool]:
        """Return the cluster's number of a version, and whether it is there; without a number, whether any is.

        Raises:
            Failure: `registry.model_not_found`, `registry.version_not_found`.
        """
        listed, there = self._wanted.get(model), self._here.models.get(model)
        if listed is None and there is None:
            known = [*self._wanted, *self._here.models]
            raise Failure(
                "registry.model_not_found",
                f"line {line}: there is no model {model!r}.{did_you_mean(model, known)}",
                hint="name it under `models` with its source, or pull it first",
                param="model",
            )
        if number is None:
            return None, bool(there and there.versions)
        by_number = next((one for one in there.versions if one.number == number), None) if there else None
        meant = found = by_number
        if listed is not None and not (by_number and by_number.is_adopted):
            meant = next((version for version in listed.versions if version.number == number), None)
            found = None if meant is None else self._here.version(model, meant)
        if meant is None:
            where = "this file" if listed is not None else "the cluster"
            raise Failure(
                "registry.version_not_found",
                f"line {line}: model {model!r} has no version {number} in {where}",
                hint="a version is named by the number that it has under `models`, or by the cluster's when it is "
                "not listed there",
                param="model",
            )
        return (found.number, True) if found is not None else (number, False)

    def listed(self, model: str, number: int) -> Version | None:
        """Return the version that the file lists under `number`."""
        versions = self._wanted[model].versions if model in self._wanted else ()
        return next((version for version in versions if version.number == number), None)


def _of_version(model: Model, wanted: Version, here: _Here) -> list[Change]:
    there = here.version(model.name, wanted)
    if there is None:
        way = _way(wanted, here)
        fields = [FieldChange(name="source", after=wanted.source)]
        if wanted.digest:
            fields.append(FieldChange(name="digest", after=wanted.digest))
        if wanted.stage is not None:
            fields.append(FieldChange(name="stage", after=wanted.stage.value))
        return [
            Change(
                action=Action.CREATE,
                kind=Kind.VERSION,
                name=version_text(model.name, wanted.number),
                fields=tuple(fields),
                is_waiting=way is Way.PULL,
                way=way,
                model=model.name,
                number=wanted.number,
                wanted=wanted,
                line=wanted.line,
            )
        ]
    if wanted.stage in (None, there.stage):
        return []
    before = there.stage.value if there.stage is not None else None
    assert wanted.stage is not None
    return [
        Change(
            action=Action.UPDATE,
            kind=Kind.VERSION,
            name=version_text(model.name, there.number),
            fields=(FieldChange(name="stage", before=before, after=wanted.stage.value),),
            model=model.name,
            number=there.number,
            wanted=dataclasses.replace(wanted, number=there.number),
            line=wanted.line,
        )
    ]


def _way(wanted: Version, here: _Here) -> Way:
    if wanted.source.startswith(_BUILTIN):
        return Way.BUILTIN
    return Way.COPY if wanted.digest in here.digests else Way.PULL


def _of_deployment(wanted: Deployment, here: _Here, numbers: Numbers) -> list[Change]:
    number, is_there = numbers.of(wanted.model, wanted.number, wanted.line)
    listed = None if wanted.number is None else numbers.listed(wanted.model, wanted.number)
    approve = listed.approve_template if listed is not None else ""
    placed = dataclasses.replace(wanted, number=number, approve_template=approve)
    there = here.deployments.get(wanted.name)
    blank = there or Deployment(name=wanted.name, model="", replicas=-1)
    fields = tuple(
        change
        for name in _FIELDS
        for change in _differing(name, getattr(blank, name), getattr(placed, name), is_new=there is None)
    )
    if there is not None and not fields:
        return []
    return [
        Change(
            action=Action.CREATE if there is None else Action.UPDATE,
            kind=Kind.DEPLOYMENT,
            name=wanted.name,
            fields=fields,
            is_waiting=not is_there,
            wanted=placed,
            line=wanted.line,
        )
    ]


def _differing(name: str, before: Any, after: Any, *, is_new: bool) -> Iterable[FieldChange]:
    """Return the changes of one field; settings are compared one by one, and what is None is left as it is."""
    if name == "settings":
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key) or type(before.get(key)) is not type(after.get(key)):
                yield FieldChange(name=f"settings.{key}", before=before.get(key), after=after.get(key))
        return
    shown = "version" if name == "number" else name
    if isinstance(after, tuple):
        before, after = sorted(set(before)), sorted(set(after))
    if after is None or after == before:
        return
    yield FieldChange(name=shown, before=None if is_new else before, after=after)


def _of_alias(wanted: Alias, here: _Here, numbers: Numbers) -> list[Change]:
    number, is_there = numbers.of(wanted.model, wanted.number, wanted.line)
    listed = None if wanted.number is None else numbers.listed(wanted.model, wanted.number)
    approve = listed.approve_template if listed is not None else ""
    placed = dataclasses.replace(wanted, number=number, approve_template=approve)
    there = here.aliases.get(wanted.name)
    if there == placed:
        return []
    before = version_text(there.model, there.number) if there else None
    return [
        Change(
            action=Action.CREATE if there is None else Action.UPDATE,
            kind=Kind.ALIAS,
            name=wanted.name,
            fields=(FieldChange(name="model", before=before, after=version_text(placed.model, placed.number)),),
            is_waiting=not is_there,
            wanted=placed,
            line=wanted.line,
        )
    ]


def _pruned(wanted: Blueprint, here: _Here) -> list[Change]:
    gone = [
        *_unnamed(Kind.ALIAS, wanted.aliases, here.aliases),
        *_unnamed(Kind.DEPLOYMENT, wanted.deployments, here.deployments),
    ]
    for model in wanted.models or ():
        kept = {there.number for one in model.versions if (there := here.version(model.name, one)) is not None}
        gone += [
            Change(
                action=Action.DELETE,
                kind=Kind.VERSION,
                name=version_text(model.name, version.number),
                model=model.name,
                number=version.number,
            )
            for version in (here.models[model.name].versions if model.name in here.models else ())
            if version.number not in kept and not version.is_adopted
        ]
    own = {name: one for name, one in here.models.items() if not any(version.is_adopted for version in one.versions)}
    return [*gone, *_unnamed(Kind.MODEL, wanted.models, own)]


def _unnamed(
    kind: Kind, wanted: Iterable[Model | Alias | Deployment] | None, there: Mapping[str, object]
) -> list[Change]:
    if wanted is None:
        return []
    named = {one.name for one in wanted}
    return [Change(action=Action.DELETE, kind=kind, name=name, model=name) for name in there if name not in named]
