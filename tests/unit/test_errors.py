"""Every code raised anywhere in the tree stands in the table, and every failure says what an edge needs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import CODES, Failure, Kind, Retry

ROOT = Path(__file__).parents[2]
PACKAGES = ["core", "scheduler", "adapters", "controller", "node_agent", "gateway", "cli"]


def literal_codes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each code written as the first argument, or as `code=`, of a call of `Failure`."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name != "Failure":
            continue
        given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "code")]
        for one in given:
            parts = (one.body, one.orelse) if isinstance(one, ast.IfExp) else (one,)
            for part in parts:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value, call.lineno


def test_every_code_raised_in_the_tree_stands_in_the_table():
    unknown = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found = literal_codes(ast.parse(path.read_text()))
            unknown += [f"{path.relative_to(ROOT)}:{line} {code}" for code, line in found if code not in CODES]
    assert unknown == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_code_is_an_area_and_a_condition(code):
    area, dot, condition = code.partition(".")
    assert area.isidentifier()
    assert dot == "."
    assert condition.isidentifier()


def test_a_failure_has_its_code_s_kind_and_retry():
    failure = Failure("placement.no_node", "no machine has joined yet", hint="start one", param="engine")
    assert (failure.kind, failure.retry) == (Kind.UNAVAILABLE, Retry.LATER)
    assert str(failure) == "no machine has joined yet; start one"
    assert str(Failure("door.no_routes", "It does not exist.", hint="Look")) == "It does not exist. Look"
    assert str(Failure("door.no_routes", "None 'a'. Did you mean 'b'?", hint="Look")).endswith("'b'? Look")
    assert str(Failure("door.no_routes", "It does not exist.")) == "It does not exist."
    assert failure.as_json() == {
        "code": "placement.no_node",
        "message": "no machine has joined yet",
        "hint": "start one",
        "param": "engine",
        "retry": "later",
    }


def test_a_code_that_nobody_wrote_down_cannot_be_raised():
    with pytest.raises(KeyError):
        Failure("made.up", "no")


def test_what_is_unavailable_may_be_tried_again():
    assert all(retry is not Retry.NEVER for kind, retry in CODES.values() if kind is Kind.UNAVAILABLE)
