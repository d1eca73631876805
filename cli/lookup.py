"""Finds what a name on the command line means: a deployment, a model, an alias, a replica.

The admin API's lists come in through the client; API objects go out. Called by commands that take such a name.
"""

from collections.abc import Callable

from cli.client import AdminClient, Json
from core.errors import Failure
from core.names import did_you_mean, split_version

Version = tuple[str, int | None]
"""A model's name, and the number of one of its versions or None for any."""


def serving(client: AdminClient, name: str) -> list[Json]:
    """Return the deployments that `name` means: the one so called, else those of the model or alias so called.

    `m@v2` means those of that version, and so does an alias that stands for it.

    Raises:
        Failure: `deployment.not_found`, `request.invalid_name`.
    """
    known = client.items("deployments")
    found = meant(known, name, lambda: version_of(client, name))
    if not found:
        names = [str(item.get("name")) for item in known]
        raise Failure(
            "deployment.not_found",
            f"nothing serves {name!r}.{did_you_mean(name, names)}",
            hint="`slice deployments` lists what is deployed",
        )
    return found


def meant(deployments: list[Json], name: str, version: Callable[[], Version]) -> list[Json]:
    """Return the deployments called `name`, else those of what it stands for; `version` is asked only then."""
    called = [item for item in deployments if item.get("name") == name]
    if called:
        return called
    model, number = version()
    return [
        item for item in deployments if item.get("model") == model and (number is None or item.get("version") == number)
    ]


def version_of(client: AdminClient, name: str) -> Version:
    """Return what an alias called `name` stands for, or what `name` itself says when there is no such alias.

    Raises:
        Failure: `request.invalid_name` for a version that is none.
    """
    split = split_version(name)
    for item in client.items("aliases"):
        if item.get("name") == split[0]:
            return str(item["model"]), item.get("version") if split[1] is None else split[1]
    return split


def replicas_of(client: AdminClient, target: str) -> list[Json]:
    """Return the replicas that `target` means, newest first: one by its id or a clear beginning of it, or all of a
    deployment, model or alias.

    Raises:
        Failure: `replica.not_found`, or `request.usage` when a beginning fits several.
    """
    known = client.items("replicas")
    exact = [item for item in known if item.get("id") == target]
    begun = exact or [item for item in known if target.startswith("rep_") and str(item.get("id")).startswith(target)]
    if len(begun) > 1:
        raise Failure(
            "request.usage", f"{target!r} begins {len(begun)} replica ids", hint="give more of the id (`slice ps`)"
        )
    found = begun or [item for item in known if item.get("deployment") == target]
    if not found:
        model, number = version_of(client, target)
        found = [
            item for item in known if item.get("model") == model and (number is None or item.get("version") == number)
        ]
    if not found:
        names = {str(item.get("deployment")) for item in known}
        raise Failure(
            "replica.not_found",
            f"no replica of {target!r}.{did_you_mean(target, sorted(names))}",
            hint="`slice ps` lists what runs",
        )
    return sorted(found, key=lambda item: str(item.get("created_at") or ""), reverse=True)
