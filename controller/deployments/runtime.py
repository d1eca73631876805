"""Which runtime a deployment gets and whether what it names besides fits to it: pure.

Called by `controller.deployments.service` for each wish, before anything is written.
"""

import re

from adapters.contract import Adapter, External, Runtime
from controller.deployments.model import NewDeployment
from core.errors import Failure
from core.footprint import NO_FOOTPRINT, Footprint

_IMAGE = re.compile(r"^[a-z0-9](?:[a-zA-Z0-9._/:-]{0,253}[a-zA-Z0-9])?@sha256:[0-9a-f]{64}\Z")


def chosen_runtime(adapter: Adapter, wish: NewDeployment) -> Runtime:
    """Return the runtime of `wish`: the one it names, a container when it names an image, else the adapter's usual one.

    Raises:
        Failure: `engine.runtime_unsupported`, `container.image_not_pinned`, `request.invalid_field`.
    """
    runtime = _named(adapter, wish)
    if runtime not in adapter.runtimes:
        known = ", ".join(sorted(one.value for one in adapter.runtimes))
        raise Failure(
            "engine.runtime_unsupported",
            f"{adapter.name} cannot be run as {runtime.value}",
            hint=f"it can be run as {known}",
            param="runtime",
        )
    if runtime is Runtime.CONTAINER:
        check_image(wish.image)
    elif wish.image:
        raise Failure("request.invalid_field", "only a container has an image", hint="leave it out", param="image")
    if wish.secret_name and runtime is not Runtime.EXTERNAL:
        raise Failure(
            "request.invalid_field",
            "only an engine that runs elsewhere has a secret: others get a key of their own from Slice",
            hint="leave it out",
            param="secret",
        )
    return runtime


def _named(adapter: Adapter, wish: NewDeployment) -> Runtime:
    if wish.runtime is not None:
        try:
            return Runtime(wish.runtime)
        except ValueError:
            known = ", ".join(one.value for one in Runtime)
            raise Failure(
                "request.invalid_field",
                f"there is no runtime {wish.runtime[:40]!r}",
                hint=f"write one of {known}",
                param="runtime",
            ) from None
    if wish.image:
        return Runtime.CONTAINER
    usual = (Runtime.PROCESS, Runtime.EXTERNAL, Runtime.CONTAINER)
    return next(one for one in usual if one in adapter.runtimes)


def check_image(image: str) -> None:
    """Check that `image` names the same bytes for ever.

    Raises:
        Failure: `container.image_not_pinned` for a tag, nothing, or anything else without a digest.
    """
    if not _IMAGE.match(image) or ".." in image or "//" in image:
        raise Failure(
            "container.image_not_pinned",
            f"the image {image[:200]!r} is not pinned" if image else "a container needs an image",
            hint="write NAME@sha256:DIGEST; `podman images --digests` shows it",
            param="image",
        )


def footprint_under(runtime: Runtime, computed: Footprint) -> Footprint:
    """Return what a replica needs here: nothing when its engine runs elsewhere."""
    return NO_FOOTPRINT if runtime is Runtime.EXTERNAL else computed


def check_remote(adapter: Adapter, runtime: Runtime, settings: object) -> None:
    """Check the settings that say where an external engine is.

    Raises:
        Failure: `engine.setting_invalid`.
    """
    if runtime is Runtime.EXTERNAL and isinstance(adapter, External) and isinstance(settings, dict):
        adapter.remote(settings)
