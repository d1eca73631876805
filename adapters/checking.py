"""Checks a deployment's settings against what its engine knows.

In: an adapter, the settings that a person gave, and the model's facts where known. Out: every setting of the engine
with its value, defaults filled in. Called by the controller when a deployment is made or changed. Pure.
"""

import math

from adapters.contract import Adapter, JsonValue, ModelFacts, Settings, SettingSpec
from core.errors import Failure
from core.names import did_you_mean

RESERVED = frozenset(
    {
        *("host", "hostname", "port", "uds", "api_key", "api_keys"),
        *("model", "model_path", "served_name", "served_model_name", "alias"),
        *("trust_remote_code", "trust_request_chat_template", "middleware", "tool_parser_plugin", "download_dir"),
        *("allowed_local_media_path", "load_format", "argv", "args", "extra_args", "env", "environment"),
    }
)
"""Names that no engine may have for a setting: a deployment that set them would break routing or fencing, or have the
engine load code that came with a model."""


def checked_settings(adapter: Adapter, settings: Settings, facts: ModelFacts | None = None) -> dict[str, JsonValue]:
    """Return all of the engine's settings: those given, checked, and the defaults of the others.

    A default is lowered to what the model allows (`SettingSpec.capped_by`); a given value above it is refused.

    Raises:
        Failure: `engine.setting_reserved`, or `engine.setting_invalid` for an unknown name, a wrong type or a value
            out of bounds.
    """
    specs = {spec.name: spec for spec in adapter.setting_specs}
    for name in settings:
        if name in specs:
            continue
        if name.lower().strip("-").replace("-", "_") in RESERVED:
            raise Failure(
                "engine.setting_reserved",
                f"the setting {name[:80]!r} is Slice's own",
                hint="leave it out; Slice chooses addresses, names and keys of engines",
                param=name,
            )
        raise Failure(
            "engine.setting_invalid",
            f"{adapter.name} has no setting {name[:80]!r}.{did_you_mean(name, specs)}",
            hint=f"it knows: {', '.join(sorted(specs))}",
            param=name,
        )
    return {
        name: _checked(adapter, spec, settings[name], _cap(spec, facts)) if name in settings else _default(spec, facts)
        for name, spec in specs.items()
    }


def _cap(spec: SettingSpec, facts: ModelFacts | None) -> int | None:
    if facts is None or not spec.capped_by:
        return None
    cap = getattr(facts, spec.capped_by)
    return cap if isinstance(cap, int) and cap > 0 else None


def _default(spec: SettingSpec, facts: ModelFacts | None) -> JsonValue:
    cap = _cap(spec, facts)
    if cap is not None and isinstance(spec.default, int) and not isinstance(spec.default, bool):
        return min(spec.default, cap)
    return spec.default


def _checked(adapter: Adapter, spec: SettingSpec, value: JsonValue, cap: int | None) -> JsonValue:
    if spec.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not spec.kind:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise _invalid(adapter, spec, f"must be {words.get(spec.kind, spec.kind.__name__)}")
    if spec.choices and value not in spec.choices:
        raise _invalid(adapter, spec, f"must be one of {', '.join(spec.choices)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _invalid(adapter, spec, "must be finite")
        if spec.minimum is not None and value < spec.minimum:
            raise _invalid(adapter, spec, f"must be at least {spec.minimum:g}")
        if spec.maximum is not None and value > spec.maximum:
            raise _invalid(adapter, spec, f"must be at most {spec.maximum:g}")
        if cap is not None and value > cap:
            raise _invalid(adapter, spec, f"must be at most {cap}, the model's own limit")
    return value


def _invalid(adapter: Adapter, spec: SettingSpec, fault: str) -> Failure:
    return Failure(
        "engine.setting_invalid",
        f"the setting {spec.name!r} of {adapter.name} {fault}",
        hint=f"it means: {spec.meaning}",
        param=spec.name,
    )
