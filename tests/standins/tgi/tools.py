"""Tools as TGI has them: a grammar that forces a call, and its text read back as one.

Comes in: the tools and the choice of a chat. Goes out: a JSON schema for the answer, and calls. The model writes
`{"function": {"_name": NAME, ...arguments}}`; with the choice `auto` there is one function more, which means no tool.

Source: huggingface/text-generation-inference router/src/infer/tool_grammar.rs and chat.rs of 3.x.
"""

import json
import re
from collections.abc import Iterator

from tests.standins.tgi.answering import ApiError, Made

NO_TOOL = "no_tool"
_BEGUN = re.compile(r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*(,\s*|\})')


def tool_error(text: str) -> ApiError:
    return ApiError(422, f"Tool error: {text}", "tool_error")


def schema_of(tools: list[dict], choice: object) -> dict | None:
    """Return the schema that the answer must fit, None when no tool is to be called.

    Raises:
        ApiError: the choice names a tool that is not among them.
    """
    named = choice["function"]["name"] if isinstance(choice, dict) else choice
    functions = {one["function"]["name"]: one["function"] for one in tools}
    if named == "none" or not functions:
        return None
    if named in (None, "auto"):
        functions[NO_TOOL] = {"name": NO_TOOL, "parameters": {"type": "object"}}
    elif named != "required":
        if named not in functions:
            raise tool_error(f"Tool with name {named} not found")
        functions = {named: functions[named]}
    forms = [_form(name, one.get("parameters", one.get("arguments"))) for name, one in functions.items()]
    return {
        "type": "object",
        "properties": {"function": {"anyOf": forms}},
        "required": ["function"],
        "additionalProperties": False,
    }


def _form(name: str, arguments: object) -> dict:
    given = arguments if isinstance(arguments, dict) else {}
    return {
        "type": "object",
        "properties": {"_name": {"type": "string", "const": name}, **given.get("properties", {})},
        "required": ["_name", *given.get("required", [])],
        "additionalProperties": False,
    }


def call_in(text: str) -> tuple[str, str]:
    """Return the name and the arguments, as the text of an object, that a whole answer tells.

    Raises:
        ApiError: it was cut before its end.
    """
    try:
        function = json.loads(text)["function"]
        name = function.pop("_name")
    except (ValueError, KeyError) as error:
        raise tool_error(f"Failed to parse generated text: {error} {text!r}") from error
    return name, json.dumps(function, separators=(",", ":"))


def pieces(made: Iterator[Made]) -> Iterator[tuple[str | None, str, Made]]:
    """Yield (name, text of the arguments, token) as a call grows; the name comes once, with the opening brace.

    Ends after one item with the name `NO_TOOL` when no tool was chosen.
    """
    text, told = "", 0
    for one in made:
        text += one.token["text"]
        begun = _BEGUN.match(text)
        if begun is None:
            continue
        if begun[1] == NO_TOOL:
            yield NO_TOOL, "", one
            return
        start = begun.start(2) if begun[2] == "}" else begun.end()
        arguments = "{" + text[start:]
        if one.reason is not None and arguments.rstrip().endswith("}"):
            arguments = arguments.rstrip()[:-1]  # what closes the outer object
        # The last brace may be the outer one: only the end tells.
        certain = len(arguments) if one.reason is not None else len(arguments.rstrip("} \n"))
        if certain > told or one.reason is not None:
            yield None if told else begun[1], arguments[told:certain], one
            told = max(certain, told)
