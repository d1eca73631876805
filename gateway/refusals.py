"""Why the door has no answer from an engine, as failures in the client's words.

Pure. Called by the relay and the app.
"""

from core.errors import Failure
from core.names import did_you_mean
from gateway.table import Route, Table

DISABLED_RETRY_S = 60.0
"""When to ask again for a disabled model: an operator, not time, enables it."""


def unknown_model(table: Table, model: str) -> Failure:
    """Return the failure for a name that no route has."""
    return Failure(
        "registry.model_not_found",
        f"The model '{model[:80]}' does not exist.{did_you_mean(model[:80], table.visible())}",
        hint="GET /v1/models lists the models",
        param="model",
    )


def disabled(route: Route) -> Failure:
    """Return the failure for a route that an operator has disabled: no request starts it, so repeating is in vain."""
    return Failure(
        "door.model_disabled",
        f"Model '{route.public_name}' is disabled",
        hint="an operator of the cluster can enable it",
        param="model",
        retry_after_s=DISABLED_RETRY_S,
    )


def not_ready(route: Route) -> Failure:
    """Return the failure for a route that nothing serves now."""
    reason = route.waiting.strip().rstrip(".") or "nothing serves it now"
    return Failure(
        "door.model_not_ready", f"Model '{route.public_name}' is not ready: {reason}", hint="try again", retry_after_s=5
    )


def unreachable(model: str) -> Failure:
    """Return the failure for no engine that can be reached."""
    text = f"No engine of model '{model}' can be reached"
    return Failure("door.engine_unreachable", text, hint="try again in a moment", retry_after_s=1)


def died(model: str) -> Failure:
    """Return the failure for an engine that broke off."""
    return Failure("door.engine_failed", f"The engine of model '{model}' ended before its answer did", hint="try again")


def timed_out(model: str, seconds: float) -> Failure:
    """Return the failure for an engine that was silent for `seconds`."""
    return Failure(
        "door.engine_timeout",
        f"The engine of model '{model}' sent nothing for {seconds:g} s",
        hint="shorten the prompt, or try again when it is less busy",
    )
