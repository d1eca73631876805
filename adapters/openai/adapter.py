"""Describes remote OpenAI-compatible endpoints: nothing of ours is started, they are probed and routed to.

In: settings. Out: values. Called through `adapters.contract.Adapter` and `External`; starts nothing and asks nobody.
Two engines share this file: `openai` speaks OpenAI's API as it is; `textgen_webui` is text-generation-webui, whose
server looks the same and differs in what it ignores (design.md has the list, read off its source).
"""

from collections.abc import Mapping

from adapters.contract import (
    Capability,
    Dialect,
    Endpoint,
    Fingerprint,
    Health,
    HostFacts,
    InstallPlan,
    JsonValue,
    Launch,
    LaunchRequest,
    ModelFacts,
    Remote,
    Runtime,
    Settings,
    SettingSpec,
)
from core.devices import DeviceKind
from core.errors import Failure
from core.footprint import Footprint, Provenance
from core.origins import is_loopback, parse_base_url

_PATHS = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.COMPLETIONS: "/v1/completions",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}
_ALL_ENDPOINTS = ",".join(endpoint.value for endpoint in Endpoint)

_SPECS = (
    SettingSpec(
        name="base_url",
        # No default: whose machine answers is the one thing that only the operator knows.
        meaning="https://HOST/PATH of the endpoint; http:// only for loopback and private addresses",
        kind=str,
        default="",
    ),
    SettingSpec(
        name="remote_model",
        meaning="what the endpoint calls the model; empty when that is the deployment's name",
        kind=str,
        default="",
    ),
    SettingSpec(
        name="probe_path",
        # Every OpenAI-compatible server lists its models; it costs no tokens and proves the key.
        meaning="path below the base URL whose GET answers 200 when the endpoint is well",
        kind=str,
        default="/v1/models",
    ),
    SettingSpec(
        name="endpoints",
        meaning="what the remote model serves, a list of chat, completions and embeddings with commas between",
        kind=str,
        default=_ALL_ENDPOINTS,
    ),
)


class OpenAiRemote:
    """The adapter of endpoints that speak OpenAI's API."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "openai"

    @property
    def default_version(self) -> str:
        """The version of the API, which is all that is known of the program behind it."""
        return "v1"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that this release knows."""
        return (self.default_version,)

    @property
    def runtimes(self) -> frozenset[Runtime]:
        """External: it runs elsewhere."""
        return frozenset({Runtime.EXTERNAL})

    @property
    def formats(self) -> frozenset[str]:
        """It takes no file: the model lies where the endpoint is."""
        return frozenset({""})

    @property
    def setting_specs(self) -> tuple[SettingSpec, ...]:
        """Every setting a deployment may give."""
        return _SPECS

    @property
    def health(self) -> Health:
        """The setting `probe_path`; over a long line it may take its time."""
        return Health(path="/v1/models", probe_timeout_s=10.0)

    @property
    def dialect(self) -> Dialect:
        """OpenAI's own; a prompt that does not fit is known by its words, as the error's type says less."""
        return Dialect(
            paths=_PATHS,
            overflow_types=frozenset({"exceed_context_size_error"}),  # a llama-server
            overflow_phrases=("maximum context length", "exceeds the available context size", "context window"),
        )

    @property
    def metrics(self) -> Mapping[str, str]:
        """None: what the endpoint counts is its owner's."""
        return {}

    def fingerprint(self, host: HostFacts) -> Fingerprint:
        """Return that every machine can reach out; whether the line exists is what the probe tells."""
        return Fingerprint(is_usable=True, device_kinds=frozenset({DeviceKind.CPU}))

    def install_plan(self, version: str) -> InstallPlan:
        """Return that there is nothing to install."""
        return InstallPlan(requirements=())

    def launch(self, request: LaunchRequest) -> Launch:
        """Refuse: nothing is started.

        Raises:
            Failure: `engine.runtime_unsupported`.
        """
        raise Failure(
            "engine.runtime_unsupported",
            f"{self.name} is never started here: it runs elsewhere",
            hint="deploy it with the runtime external",
        )

    def remote(self, settings: Settings) -> Remote:
        """Return where the endpoint is.

        Raises:
            Failure: `engine.setting_invalid`.
        """
        base_url = _text(settings, "base_url")
        if not base_url:
            raise _fault("base_url", "must be given", "add --set base_url=https://HOST/PATH")
        origin = parse_base_url(base_url)
        probe_path = _text(settings, "probe_path") or "/v1/models"
        if not probe_path.startswith("/") or any(not 0x20 < ord(one) < 0x7F for one in probe_path):
            raise _fault("probe_path", "must be a path that begins with a slash", "leave it out: /v1/models is usual")
        unknown = _words(settings) - {endpoint.value for endpoint in Endpoint}
        if unknown or not _words(settings):
            raise _fault("endpoints", "names no known endpoint", f"write {_ALL_ENDPOINTS}, or a part of it")
        return Remote(
            base_url=origin.url,
            probe_path=probe_path,
            model=_text(settings, "remote_model"),
            is_local=is_loopback(origin),
        )

    def endpoints(self, settings: Settings) -> frozenset[Endpoint]:
        """Return those that the setting `endpoints` names."""
        return frozenset(endpoint for endpoint in Endpoint if endpoint.value in _words(settings))

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints and what OpenAI's API promises in them; whether the model keeps it is unknown."""
        powers = {
            Capability.STREAM_USAGE,
            Capability.SEED,
            Capability.JSON_SCHEMA,
            Capability.TOOLS,
            Capability.LOGPROBS,
        }
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), *powers})

    def footprint(self, facts: ModelFacts, settings: Settings) -> Footprint:
        """Return nothing: the weights lie elsewhere."""
        return Footprint(
            weights_bytes=0, kv_cache_bytes=0, compute_bytes=0, overhead_bytes=0, provenance=Provenance.COMPUTED
        )


_ONE: tuple[JsonValue, ...] = (1,)
_UNHEEDED: Mapping[str, tuple[JsonValue, ...]] = {
    # `n`, `best_of`, `functions` and `function_call` are called unused there; `response_format` is not known at all.
    "n": _ONE,
    "best_of": _ONE,
    "functions": (),
    "function_call": (),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    # Chosen by the operator on that machine: a client's own template is code that runs there.
    "instruction_template": (),
    "instruction_template_str": (),
    "chat_template_str": (),
    "character": (),
    "preset": (),
    "mode": ("instruct",),
}


class TextgenWebui(OpenAiRemote):
    """The adapter of text-generation-webui's API (started there with `--api`)."""

    @property
    def name(self) -> str:
        """The engine's name."""
        return "textgen_webui"

    @property
    def dialect(self) -> Dialect:
        """OpenAI's paths; an old name for the limit, and fields that it would ignore without a word.

        A prompt that does not fit is cut in silence: `truncation_length` is the operator's own setting there.
        """
        return Dialect(paths=_PATHS, renames={"max_completion_tokens": "max_tokens"}, refused=_UNHEEDED)

    def capabilities(self, settings: Settings) -> frozenset[Capability]:
        """Return its endpoints, and seeds: schemas are ignored, tools and logprobs depend on its loader."""
        return frozenset({*(Capability(one.value) for one in self.endpoints(settings)), Capability.SEED})


def _text(settings: Settings, name: str) -> str:
    value = settings.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def _words(settings: Settings) -> set[str]:
    return {word.strip() for word in (_text(settings, "endpoints") or _ALL_ENDPOINTS).split(",") if word.strip()}


def _fault(name: str, fault: str, hint: str) -> Failure:
    return Failure("engine.setting_invalid", f"the setting {name!r} {fault}", hint=hint, param=name)
