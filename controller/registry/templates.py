"""Chat templates in production: what a model's users talk through does not change unless somebody approves it.

Comes in: a version that goes to production, or to which an alias or a deployment goes that stands for one there. Goes
out: leave, or `registry.template_changed`. Called by `controller.registry.stages` and `aliases`, and by
`controller.deployments`, in their transactions. A template counts as approved when a version of the same model with it
is or was in production: the history of stages remembers it even when that version is gone.
"""

from collections.abc import Sequence

from controller.registry import alias_store, store
from controller.registry.model import Model, Version
from core.errors import Failure
from core.infra import postgres
from core.names import version_text
from core.states import Stage

_SHOWN = 12


async def checked_template(
    connection: postgres.Connection,
    model: Model,
    version: Version,
    *,
    approve: str | None,
    command: str,
    served: Sequence[str] = (),
) -> str:
    """Return the digest that `approve` has newly approved, "" where nothing had to be.

    `command` is what an operator types to do the same with an approval; `served` are templates that count as approved
    besides the model's own, since whoever asks talks through them already.

    Raises:
        Failure: `registry.template_changed`.
    """
    approved = [*await alias_store.production_templates(connection, model.model_id), *served]
    there = await store.versions_of(connection, model.model_id)
    return verdict(model.name, version, approved, there, approve=approve, command=command)


class Templates:
    """What deployments ask before they go to another version: `controller.deployments.ports.TemplateCheck`."""

    async def checked(
        self, connection: postgres.Connection, before_id: str, after_id: str, *, approve: str | None, command: str
    ) -> str:
        """Return the digest that `approve` newly approves for a deployment that goes from one version to another.

        Only what stands for a version in production asks.

        Raises:
            Failure: `registry.template_changed`.
        """
        versions = {one.version_id: one for one in await store.versions(connection)}
        before, after = versions[before_id], versions[after_id]
        is_asked = before.stage == Stage.PRODUCTION.value
        if not is_asked and approve is None:
            return ""
        model = next(one for one in await store.models(connection) if one.model_id == after.model_id)
        approved = await checked_template(connection, model, after, approve=approve, command=command)
        return approved if is_asked else ""


def verdict(
    name: str,
    version: Version,
    approved: Sequence[str],
    there: Sequence[Version],
    *,
    approve: str | None,
    command: str,
) -> str:
    """Return the digest that `approve` newly approves for `version`, "" where nothing has to be approved.

    `approved` are the templates that were in production, newest first ("" : none), `there` the model's versions.

    1. An approval of another template than the version's is a mistake, whether one is needed or not.
    2. No template, the first version in production, and a template that was there before need none.
    3. Any other is approved by its own digest, or refused.

    Raises:
        Failure: `registry.template_changed`.
    """
    found = version.chat_template_sha256
    # Branch 1.
    if approve is not None and approve != found:
        which = f"the chat template {_short(found)}" if found else "no chat template"
        what = f"version {version.number} of model {name!r} has {which}, not {_short(approve)}"
        raise _changed(f"{what}, which was approved", name, version, None, command)
    # Branch 2.
    if not found or not approved or found in approved:
        return ""
    # Branch 3.
    if approve is not None:
        return approve
    last = next((sha256 for sha256 in approved if sha256), "")
    what = (
        f"version {version.number} of model {name!r} has the chat template {_short(found)}, "
        f"approved for production is {_short(last) if last else 'none'}"
    )
    other = next((one for one in there if last and one.chat_template_sha256 == last), None)
    raise _changed(what, name, version, other, command)


def _changed(what: str, name: str, version: Version, other: Version | None, command: str) -> Failure:
    look = f"`slice show {version_text(name, version.number)} --template` prints it with its digest"
    if other is not None:
        look += f", `slice show {version_text(name, other.number)} --template` the approved one"
    return Failure(
        "registry.template_changed",
        what,
        hint=f"{look}; if it is right, `{command} --approve-template SHA256` approves it",
        param="approve_template",
    )


def _short(sha256: str) -> str:
    return f"{sha256[:_SHOWN]}..."
