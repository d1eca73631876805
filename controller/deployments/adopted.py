"""How a model in an engine that somebody else runs is deployed: external, on that node, under its name there.

Pure. Comes in: the version. Goes out: what the deployment's row gets beside what was asked for. Called by
`controller.deployments.service`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.contract import Runtime
from controller.deployments.model import Deployment, NewDeployment
from controller.exchange import DeployableVersion
from core.errors import Failure
from core.names import version_text

PLACED = frozenset({"address", "remote_model"})
"""Settings that follow from where the model is, whatever was asked for."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Runtime, the only node that may run it ("" : any), and settings that follow from that."""

    runtime: Runtime = Runtime.PROCESS
    node_name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def placement(version: DeployableVersion) -> Placement:
    """Return how `version` is brought to life.

    Raises:
        Failure: `registry.version_not_found` when no engine that we read has it any more.
    """
    if not version.is_adopted:
        return Placement()
    if version.adopted is None:
        raise Failure(
            "registry.version_not_found",
            f"no adopted engine has model {version.model!r} any more",
            hint="`slice engine list` shows what is adopted; pull the model there again, or adopt that engine again",
            param="model",
        )
    return Placement(
        runtime=Runtime.EXTERNAL,
        node_name=version.adopted.node_name,
        settings={"address": version.adopted.base_url, "remote_model": version.adopted.remote_model},
    )


def check_wish(place: Placement, wish: NewDeployment) -> None:
    """Check that `wish` asks for nothing but what follows from `place`, where an adopted engine has its model.

    Raises:
        Failure: `request.invalid_field`.
    """
    given = (
        ("runtime", wish.runtime, place.runtime.value),
        ("image", wish.image, ""),
        ("node", wish.node_name, place.node_name),
        ("secret", wish.secret_name, ""),
    )
    for param, asked, follows in given:
        if asked and asked != follows:
            raise Failure(
                "request.invalid_field",
                f"model {wish.model!r} runs in an adopted engine on node {place.node_name}: its {param} cannot be "
                f"{asked[:80]!r}",
                hint="leave it out",
                param=param,
            )


def placement_after(current: Deployment, before: DeployableVersion, after: DeployableVersion) -> Placement:
    """Return how `current`, which serves `before`, is brought to life with `after`.

    Raises:
        Failure: `request.invalid_field` when only one of both lies in an adopted engine: a deployment's runtime stays;
            `registry.version_not_found` as for `placement`.
    """
    if before.is_adopted != after.is_adopted:
        raise Failure(
            "request.invalid_field",
            f"deployment {current.name!r} cannot go to {version_text(after.model, after.number)}: one of them is "
            "in an adopted engine, the other is not",
            hint="make a deployment of its own for that version",
            param="version",
        )
    return placement(after) if after.is_adopted else Placement(node_name=current.node_name)
