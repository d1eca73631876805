"""From the text of a blueprint to its values, every fault with its line: pure, and bounded for hostile text.

Comes in: YAML (JSON is YAML). Goes out: `Blueprint`, or a `Failure` that names the line and the key that was meant. The
text is walked as YAML nodes: nothing is constructed but plain scalars, aliases of YAML are refused (they can grow a
small text without bound), and so is deep nesting.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from adapters.contract import Runtime
from controller.blueprint.model import FORMAT, Alias, Blueprint, Deployment, Model, Version
from core.errors import Failure
from core.names import checked_name, did_you_mean, split_version
from core.sources import parse_source
from core.states import DisabledAnswer, Stage

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH = 8
_NODES = 20_000
_TEXT = "tag:yaml.org,2002:str"
_WORDS = {"int": "a whole number", "bool": "true or false", "str": "a text; put it into quotes"}
_BUILTIN = "builtin:"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
Thing = TypeVar("Thing")


def blueprint(text: str) -> Blueprint:
    """Return the blueprint that `text` holds.

    Raises:
        Failure: `request.unknown_field`, `request.invalid_field`, `request.out_of_range`, `request.invalid_name`,
            `source.invalid`, each with its line.
    """
    root = _composed(text)
    keys = _mapping(root, "the file", ("format", "models", "aliases", "deployments"))
    if "format" in keys and _number(keys["format"], "format", 1, 10**6) > FORMAT:
        raise _wrong(keys["format"], f"this file is of a newer form than {FORMAT}", "upgrade this cluster first")
    found = Blueprint(
        models=_section(keys, "models", _model),
        aliases=_section(keys, "aliases", _alias),
        deployments=_section(keys, "deployments", _deployment),
    )
    models = {model.name for model in found.models or ()}
    for alias in found.aliases or ():
        if alias.name in models:
            raise _at(alias.line, f"{alias.name!r} is the name of a model too", "give the alias another name")
    return found


def _composed(text: str) -> Node:
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise _at(line, "references (*name) are not taken", "write the value itself")
            if depth > _DEPTH or count > _NODES:
                raise _at(line, "the file is nested too deeply or too long", "")
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _at(mark.line + 1 if mark else 1, f"this is not YAML: {error.problem or 'malformed'}", "") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _at(1, "the file has characters that are none", "write it in UTF-8") from error
    if root is None:
        raise _at(1, "the file is empty", "`slice export` shows the form")
    return root


def _section(keys: Mapping[str, Node], name: str, read: Callable[[Node], Thing]) -> tuple[Thing, ...] | None:
    if name not in keys:
        return None
    items = tuple(read(node) for node in _sequence(keys[name], name))
    seen: set[str] = set()
    for node, item in zip(_sequence(keys[name], name), items, strict=True):
        called = str(getattr(item, "name", ""))
        if called in seen:
            raise _wrong(node, f"{called!r} stands twice under {name}", "")
        seen.add(called)
    return items


def _model(node: Node) -> Model:
    keys = _mapping(node, "a model", ("name", "versions"), needed=("name", "versions"))
    versions: list[Version] = []
    for child in _sequence(keys["versions"], "versions"):
        version = _version(child, len(versions) + 1)
        if any(one.number == version.number for one in versions):
            raise _wrong(child, f"version {version.number} stands twice", "")
        versions.append(version)
    return Model(name=_name(keys["name"], "model"), versions=tuple(versions), line=_line(node))


_VERSION = ("number", "source", "digest", "stage", "approve_template")


def _version(node: Node, number: int) -> Version:
    keys = _mapping(node, "a version", _VERSION, needed=("source",))
    source = _text(keys["source"], "source")
    pinned = source if source.startswith(_BUILTIN) else _with_line(keys["source"], lambda: _pinned(source))
    digest = _text(keys["digest"], "digest") if "digest" in keys else pinned
    if pinned and digest != pinned:
        raise _wrong(keys["digest"], "this is not the digest that the source pins", "leave one of them out")
    approved = _text(keys["approve_template"], "approve_template") if "approve_template" in keys else ""
    if approved and not _SHA256.match(approved):
        raise _wrong(keys["approve_template"], "approve_template must be 64 lower-case hexadecimal digits", "")
    return Version(
        number=_number(keys["number"], "number", 1, 999_999_999) if "number" in keys else number,
        source=source,
        digest=digest,
        stage=Stage(_choice(keys["stage"], "stage", tuple(Stage))) if "stage" in keys else None,
        approve_template=approved,
        line=_line(node),
    )


def _pinned(source: str) -> str:
    """Return the digest of the version that `source` is, "" where it does not say."""
    sha256 = parse_source(source).file_sha256
    return f"sha256:{sha256}" if sha256 else ""


def _alias(node: Node) -> Alias:
    keys = _mapping(node, "an alias", ("name", "model"), needed=("name", "model"))
    model, number = _with_line(keys["model"], lambda: split_version(_text(keys["model"], "model")))
    return Alias(name=_name(keys["name"], "alias"), model=model, number=number, line=_line(node))


_DEPLOYMENT = (
    "name",
    "model",
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


def _deployment(node: Node) -> Deployment:
    keys = _mapping(node, "a deployment", _DEPLOYMENT, needed=("name", "model"))
    model, number = _with_line(keys["model"], lambda: split_version(_text(keys["model"], "model")))
    given: dict[str, Any] = {}
    for name in ("engine", "engine_version", "image", "node", "secret"):
        if name in keys:
            given[name] = _text(keys[name], name)
    if "replicas" in keys:
        given["replicas"] = _number(keys["replicas"], "replicas", 0, 1000)
    if "settings" in keys:
        given["settings"] = _settings(keys["settings"])
    if "requires" in keys:
        given["requires"] = tuple(_text(one, "requires") for one in _sequence(keys["requires"], "requires"))
    if "is_enabled" in keys:
        given["is_enabled"] = _scalar(keys["is_enabled"], "is_enabled", "bool")
    if "runtime" in keys:
        given["runtime"] = _choice(keys["runtime"], "runtime", tuple(Runtime))
    if "disabled_answer" in keys:
        given["disabled_answer"] = _choice(keys["disabled_answer"], "disabled_answer", tuple(DisabledAnswer))
    return Deployment(name=_name(keys["name"], "deployment"), model=model, number=number, line=_line(node), **given)


def _settings(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, child in _pairs(node, "settings"):
        if not isinstance(child, ScalarNode):
            raise _wrong(child, f"the setting {key!r} must be a number, a text, true or false", "")
        kind = child.tag.rpartition(":")[2]
        if kind == "null":
            continue  # the default
        if kind not in ("int", "float", "bool", "str"):
            raise _wrong(child, f"the setting {key!r} must be a number, a text, true or false", "quote a text")
        found[key] = _scalar(child, key, kind)
    return found


def _mapping(node: Node, what: str, known: Sequence[str], *, needed: Sequence[str] = ()) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for (key, child), line in zip(_pairs(node, what), _lines(node), strict=True):
        if key not in known:
            meant = did_you_mean(key, known).strip()
            suffix = f"; {meant[0].lower()}{meant[1:]}" if meant else ""
            raise Failure(
                "request.unknown_field",
                f"unknown key {key[:80]!r} at line {line}{suffix}",
                hint=f"{what} may have: {', '.join(known)}",
                param=key[:80],
            )
        found[key] = child
    for key in needed:
        if key not in found:
            raise _wrong(node, f"{what} lacks the key {key!r}", "")
    return found


def _pairs(node: Node, what: str) -> list[tuple[str, Node]]:
    if not isinstance(node, MappingNode):
        raise _wrong(node, f"{what} must be a mapping of keys to values", "`slice export` shows the form")
    found: dict[str, Node] = {}
    for key, child in node.value:
        name = _text(key, "a key")
        if name in found:
            raise _wrong(key, f"the key {name[:80]!r} stands twice", "")
        found[name] = child
    return list(found.items())


def _lines(node: Node) -> list[int]:
    return [_line(key) for key, _ in node.value]


def _sequence(node: Node, what: str) -> list[Node]:
    if not isinstance(node, SequenceNode):
        raise _wrong(node, f"{what} must be a list", "each item begins with `- `")
    return list(node.value)


def _scalar(node: Node, what: str, kind: str) -> Any:
    if not isinstance(node, ScalarNode) or node.tag != f"tag:yaml.org,2002:{kind}":
        raise _wrong(node, f"{what} must be {_WORDS.get(kind, kind)}", "")
    try:
        value = SafeConstructor().construct_object(node)
    except (ValueError, yaml.YAMLError) as error:
        raise _wrong(node, f"{what} must be {_WORDS.get(kind, kind)}", "") from error
    if isinstance(value, str) and ("\x00" in value or any("\ud800" <= one <= "\udfff" for one in value)):
        raise _wrong(node, f"{what} has characters that are none", "")
    return value


def _text(node: Node, what: str) -> str:
    found = str(_scalar(node, what, "str"))
    if not 1 <= len(found) <= 2000:
        raise _wrong(node, f"{what} must have 1 to 2000 characters", "")
    return found


def _number(node: Node, what: str, minimum: int, maximum: int) -> int:
    found = int(_scalar(node, what, "int"))
    if not minimum <= found <= maximum:
        raise Failure(
            "request.out_of_range", f"line {_line(node)}: {what} must be from {minimum} to {maximum}", param=what
        )
    return found


def _choice(node: Node, what: str, known: Sequence[str]) -> str:
    found = _text(node, what)
    if found not in known:
        raise _wrong(
            node, f"{what} cannot be {found[:80]!r}.{did_you_mean(found, known)}", f"one of {', '.join(known)}"
        )
    return found


def _name(node: Node, kind: str) -> str:
    return _with_line(node, lambda: checked_name(kind, _text(node, "name")))


def _with_line(node: Node, read: Callable[[], Thing]) -> Thing:
    try:
        return read()
    except Failure as failure:
        if failure.message.startswith("line "):
            raise
        raise at_line(failure, _line(node)) from failure


def at_line(failure: Failure, line: int) -> Failure:
    """Return `failure` as one of a line of the file."""
    return Failure(failure.code, f"line {line}: {failure.message}", hint=failure.hint, param=failure.param)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _wrong(node: Node, what: str, hint: str) -> Failure:
    return _at(_line(node), what, hint)


def _at(line: int, what: str, hint: str) -> Failure:
    return Failure("request.invalid_field", f"line {line}: {what}", hint=hint)
