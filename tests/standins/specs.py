"""Answers validated against the API descriptions in `tests/specs`."""

import functools
import json
from pathlib import Path

import jsonschema
import yaml

_SPECS = Path(__file__).parents[1] / "specs"
_FILES = {
    "ollama": "ollama-openapi.yaml",
    "tgi": "tgi-openapi.json",
    "openai": "openai-answers.json",
    "responses": "openai-responses.json",
}


def check(spec: str, schema: str, answer: object) -> None:
    """Validate `answer` against `schema`, a name in the description `spec`, or METHOD PATH STATUS for its answer.

    Raises:
        jsonschema.ValidationError: it does not fit.
    """
    _validator(spec, schema).validate(answer)


@functools.cache
def _validator(spec: str, schema: str) -> jsonschema.Draft202012Validator:
    document = _document(spec)
    if " " in schema:
        method, path, status = schema.split(" ")
        content = document["paths"][path][method.lower()]["responses"][status]["content"]
        root = content["application/json"]["schema"]
    else:
        root = {"$ref": f"#/components/schemas/{schema}"}
    return jsonschema.Draft202012Validator({**root, "components": document["components"]})


@functools.cache
def _document(spec: str) -> dict:
    text = (_SPECS / _FILES[spec]).read_text()
    return _with_nulls(yaml.safe_load(text) if spec == "ollama" else json.loads(text))


def _with_nulls(node: object) -> object:
    """Turn OpenAPI 3.0's `nullable` into what JSON Schema knows."""
    if isinstance(node, list):
        return [_with_nulls(one) for one in node]
    if not isinstance(node, dict):
        return node
    rest = {key: _with_nulls(value) for key, value in node.items() if key != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if node.get("nullable") is True else rest
