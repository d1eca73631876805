"""Finds a model's chat templates and reads them as a suspicious person would: text only, nothing is ever rendered.

In: template texts, or the JSON that holds them. Out: the default template with its digest, and findings; one that
reaches for Python's internals is refused. Called by the node agent's header reader.

Engines render templates in Jinja's sandbox or in a C++ dialect of it; this lint is one more wall, not the only one. It
looks at the whole source, not only at what it takes for code, so that no trick of quoting hides a word from it; string
literals are looked at again as Jinja would read them, joined and with their escapes undone.

Source: docs of Jinja 3.1 ("Sandbox", "Security Considerations"); CVE-2024-34359 (llama-cpp-python rendered templates of
GGUF files without a sandbox), CVE-2025-27516 (`|attr` went round the sandbox) and CVE-2019-10906 (`str.format_map`).
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import Failure
from core.texts import sendable

MAX_TEMPLATE_BYTES = 256 * 1024  # the longest of well-known models has below 20 KB
MAX_TEMPLATES = 32
DEFAULT = "default"
_MAX_FINDINGS = 20


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The template that engines use by default, SHA-256 of its UTF-8 bytes, and what is odd about all of them.

    All fields are empty when a model has none.
    """

    text: str = ""
    sha256: str = ""
    findings: tuple[str, ...] = ()


_INTERNALS = (
    r"__(?:class|bases?|mro|subclasses|init|new|call|globals|builtins?|import|dict|getattr|getattribute|getitem|setattr"
    r"|code|closure|defaults|func|self|reduce|reduce_ex|module|loader|spec|file|name|doc|wrapped|annotations)"
)
_ESCAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_INTERNALS}|\.\s*__\w+|\[\s*['\"]__\w+"), "it names Python's internals ({found})"),
    (re.compile(r"\|\s*attr\b|['\"]attr['\"]"), "it reaches for attributes by text (|attr)"),
    (re.compile(r"\{%[-+]?\s*(?:import|include|extends|from)\b"), "it loads other templates ({found})"),
    (
        re.compile(
            r"\b(?:subclasses|mro|func_globals|func_code|gi_frame|gi_code|cr_frame|cr_code|ag_frame|ag_code|tb_frame"
            r"|f_globals|f_locals|f_builtins|f_back|co_code|format_map)\b"
        ),
        "it names Python's internals ({found})",
    ),
    (re.compile(r"(?:\.|\[['\"])(?:popen|subprocess|getattr|builtins)\b|\bos\.system\b"), "it runs programs ({found})"),
)
"""What no honest template has; each is a known way out of the sandbox, or of an engine that has none."""

_ODD: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(?:https?|ftp|file)://[^\s'\"<>]{1,80}"), "it names the address {found}"),
    (re.compile(r"\b(?:import|eval|exec|open|compile|input|getattr)\s*\("), "it calls {found}...)"),
    (re.compile(r"\b(?:subprocess|socket|urllib|popen|builtins|pickle)\b"), "it says {found}"),
    (re.compile(r"\{[{%][^}]{0,80}\b(?:lipsum|cycler|joiner)\b"), "it uses Jinja's own objects"),
    (re.compile(r"__\w"), "it has double underscores, as Python's internals have"),
    (re.compile(r"%c"), "it makes letters from numbers (%c)"),
    (
        re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"),
        "it holds invisible characters",
    ),
)
"""What honest templates may have, but an operator should see."""

# One that nothing ends goes on to the end of the text, so that each character is looked at once.
_LITERAL = re.compile(r"'((?:[^'\\]|\\(?:.|\Z))*)(?:'|\Z)|\"((?:[^\"\\]|\\(?:.|\Z))*)(?:\"|\Z)", re.DOTALL)
_JOINT = re.compile(r"\s*[~+]?\s*")
_NUMBERED = r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|N\{[A-Za-z0-9 -]{1,80}\}|[0-7]{1,3}"
_HARD_ESCAPE = re.compile(rf"\\(?:{_NUMBERED})")
_ESCAPE = re.compile(rf"\\(?:{_NUMBERED}|.)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])\d[\d_]{6,}|\*\*")
_COMPUTED = re.compile(r"[\w\])]\s*\[[^\[\]]{0,300}~")
_FORBIDDEN_LITERAL = re.compile(
    rf"{_INTERNALS}|\A__\w*__\Z|\Aattr\Z|subclasses|\Amro\Z|func_globals|[gcat][igrb]_(?:frame|code)|f_(?:globals|locals|builtins)|format_map"
)


def chosen(templates: Mapping[str, str]) -> ChatTemplate:
    """Return the default one of `templates`, texts by name, with the findings of all.

    Raises:
        Failure: `format.template_refused` when one of them tries to leave the sandbox, or is too long to be looked at.
    """
    if not templates:
        return ChatTemplate()
    if len(templates) > MAX_TEMPLATES:
        raise _refused("", f"the model has {len(templates)} chat templates, more than {MAX_TEMPLATES}")
    findings: list[str] = []
    for name, text in templates.items():
        which = "" if name == DEFAULT else f"template {name[:80]!r}: "
        findings += [f"{which}{finding}" for finding in lint(text, name)]
    text = sendable(templates[DEFAULT] if DEFAULT in templates else next(iter(templates.values())))
    digest = hashlib.sha256(text.encode()).hexdigest()
    told = tuple(sendable(finding) for finding in findings[:_MAX_FINDINGS])
    return ChatTemplate(text=text, sha256=digest, findings=told)


def of_json(value: Any) -> dict[str, str]:
    """Return the templates in the `chat_template` of a `tokenizer_config.json`: a text, or a list of named ones.

    Raises:
        Failure: `format.template_refused` when it is something else.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    found: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [None]:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or name in found:
            raise _refused("", "its chat templates are neither a text nor a list of named texts")
        found[name] = text
    return found


def lint(text: str, name: str = DEFAULT) -> tuple[str, ...]:
    """Return what an operator should know of a template, one sentence each.

    Raises:
        Failure: `format.template_refused` for what only an attack has, naming it.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_TEMPLATE_BYTES:
        raise _refused(name, f"it has {size} bytes, more than {MAX_TEMPLATE_BYTES}")
    literals = _literals(text)
    for pattern, sentence in _ESCAPES:
        if found := pattern.search(text):
            raise _refused(name, sentence.format(found=_shown(found.group())))
    for literal in literals:
        if found := _FORBIDDEN_LITERAL.search(literal):
            raise _refused(name, f"it hides the text {_shown(found.group())!r} in the pieces or escapes of a literal")
    findings = [
        sentence.format(found=_shown(found.group())) for pattern, sentence in _ODD if (found := pattern.search(text))
    ]
    if _HARD_ESCAPE.search(text):
        findings.append("it writes characters by their numbers (\\x.. or \\u....)")
    if _COMPUTED.search(_LITERAL.sub("''", text)):
        findings.append("it computes the names of what it looks up (x[a ~ b])")
    if found := _NUMBER.search(text):
        findings.append(f"it counts far ({_shown(found.group())}): rendering it may take long")
    return tuple(findings)


def _literals(text: str) -> list[str]:
    """Return every string literal as Jinja reads it, neighbours that `~`, `+` or nothing joins as one.

    Found twice, from the beginning and from behind each delimiter, since a lone apostrophe in plain text would make
    what is code look quoted and the other way round.
    """
    found: list[str] = []
    for piece in (text, *re.split(r"\{[{%#]", text)):
        joined, end = "", -1
        for match in _LITERAL.finditer(piece):
            value = _unescaped(match.group(1) if match.group(1) is not None else match.group(2))
            joint = _JOINT.match(piece, max(end, 0))
            if end >= 0 and joint is not None and joint.end() == match.start():
                joined += value
            else:
                found.append(joined)
                joined = value
            end = match.end()
        found.append(joined)
    return found


def _unescaped(literal: str) -> str:
    """Undo a literal's escapes as Jinja's lexer does (jinja2/lexer.py, `Lexer.wrap`: those of Python)."""
    return _ESCAPE.sub(_character, literal) if "\\" in literal else literal


def _character(escape: re.Match[str]) -> str:
    text = escape.group()
    try:
        if text[1] in "xuU":
            return chr(int(text[2:], 16))
        if text[1] == "N":
            return unicodedata.lookup(text[3:-1])
        return chr(int(text[1:], 8)) if text[1] in "01234567" else text[1:]
    except (KeyError, ValueError, OverflowError):
        return text


def _shown(found: str) -> str:
    return " ".join(found.split())[:100]


def _refused(name: str, fault: str) -> Failure:
    which = "the chat template" if name in ("", DEFAULT) else f"the chat template {name[:80]!r}"
    return Failure(
        "format.template_refused",
        f"{which} is refused: {fault}",
        hint="a template only writes messages down: do not use this model before you know who made it",
    )
