"""From a cluster's rows to its blueprint, and from a blueprint to the text of a file: pure, and in a stable order."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from adapters import registry
from adapters.contract import ModelFacts, Runtime
from controller.blueprint.model import FORMAT, Alias, Blueprint, Deployment, Model, Version
from controller.deployments.adopted import PLACED
from controller.deployments.choosing import given_settings
from controller.deployments.model import Deployment as DeploymentRow
from controller.registry.model import CatalogueOfModels
from controller.registry.places import is_adopted
from core.names import version_text
from core.states import DisabledAnswer, Stage

_HEAD = """\
# The models, aliases and deployments of a Slice cluster.
# `slice apply -f FILE` makes a cluster so: it pulls what is missing, and changes nothing that is so already.
# `slice diff -f FILE` only says what would change; `slice apply --prune` also deletes what the file does not name.
# A version is known by its digest: its number only tells the parts of this file which one is meant.
# Settings are those that differ from the engine's defaults.
"""


def current(
    every: CatalogueOfModels, deployments: Sequence[DeploymentRow], facts: Mapping[str, ModelFacts]
) -> Blueprint:
    """Return the blueprint of a cluster; `facts` are those of each version by its id."""
    adopted = {row.version_id for row in every.versions if is_adopted(row)}
    versions: dict[str, list[Version]] = {}
    for row in every.versions:
        version = Version(
            number=row.number,
            source=row.source,
            digest=row.digest,
            stage=Stage(row.stage),
            approve_template=row.chat_template_sha256 if row.stage == Stage.PRODUCTION.value else "",
            asked=tuple(row.asked_sources),
        )
        versions.setdefault(row.model_id, []).append(version)
    return Blueprint(
        models=tuple(
            Model(name=row.name, versions=tuple(sorted(versions.get(row.model_id, []), key=lambda one: one.number)))
            for row in sorted(every.models, key=lambda one: one.name)
        ),
        aliases=tuple(
            Alias(name=row.name, model=row.model, number=row.version)
            for row in sorted(every.aliases, key=lambda one: one.name)
        ),
        deployments=tuple(
            _deployment(row, facts.get(row.version_id), is_placed=row.version_id in adopted)
            for row in sorted(deployments, key=lambda one: one.name)
            if not row.is_deleting
        ),
    )


def _deployment(row: DeploymentRow, facts: ModelFacts | None, *, is_placed: bool) -> Deployment:
    settings = given_settings(registry.adapter(row.engine), row.settings, facts)
    return Deployment(
        name=row.name,
        model=row.model,
        number=row.version,
        engine=row.engine,
        # "" is a program's newest version on its node: nothing that a file could pin.
        engine_version=row.engine_version or None,
        replicas=row.replicas,
        # Where an adopted engine is, its node says anew each time.
        settings={name: value for name, value in settings.items() if not (is_placed and name in PLACED)},
        requires=tuple(sorted(row.requires)),
        is_enabled=row.is_enabled,
        disabled_answer=row.disabled_answer,
        runtime=row.runtime,
        image=row.image or None,
        node=row.node_name or None,
        secret=row.secret_name or None,
    )


def text(blueprint: Blueprint) -> str:
    """Return the text of a file that `controller.blueprint.reading` reads back as the same blueprint."""
    whole: dict[str, Any] = {"format": FORMAT}
    if blueprint.models is not None:
        models = [_model(model) for model in blueprint.models]
        whole["models"] = [model for model in models if model["versions"]]
    if blueprint.aliases is not None:
        whole["aliases"] = [
            {"name": alias.name, "model": version_text(alias.model, alias.number)} for alias in blueprint.aliases
        ]
    if blueprint.deployments is not None:
        whole["deployments"] = [_deployed(deployment) for deployment in blueprint.deployments]
    return _HEAD + yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=10_000)


def _model(model: Model) -> dict[str, Any]:
    versions = []
    for version in model.versions:
        if version.is_adopted:
            continue
        shown: dict[str, Any] = {"number": version.number, "source": version.source}
        if version.digest:
            shown["digest"] = version.digest
        if version.stage is not None:
            shown["stage"] = version.stage.value
        if version.approve_template:
            shown["approve_template"] = version.approve_template
        versions.append(shown)
    return {"name": model.name, "versions": versions}


def _deployed(deployment: Deployment) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": deployment.name, "model": version_text(deployment.model, deployment.number)}
    if deployment.engine is not None:
        shown["engine"] = deployment.engine
    if deployment.engine_version is not None:
        shown["engine_version"] = deployment.engine_version
    if deployment.runtime not in (None, Runtime.PROCESS.value):
        shown["runtime"] = deployment.runtime
    for name in ("image", "node", "secret"):
        if getattr(deployment, name):
            shown[name] = getattr(deployment, name)
    shown["replicas"] = deployment.replicas
    if deployment.requires:
        shown["requires"] = list(deployment.requires)
    if deployment.settings:
        shown["settings"] = dict(sorted(deployment.settings.items()))
    if not deployment.is_enabled:
        shown["is_enabled"] = False
    if deployment.disabled_answer != DisabledAnswer.UNAVAILABLE.value:
        shown["disabled_answer"] = deployment.disabled_answer
    return shown
