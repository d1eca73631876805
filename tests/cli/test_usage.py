"""`slice usage` against a played controller."""

import json

import pytest

from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

SUM = {
    "group": "k1",
    "name": "ci",
    "requests": 12,
    "answered": 11,
    "refused": 0,
    "failed": 0,
    "cut": 1,
    "gone": 0,
    "input_tokens": 3400,
    "output_tokens": 560,
    "cached_tokens": 70,
    "estimated": 1,
    "total_s": 3.5,
}


def test_usage_is_a_table_with_only_the_faults_that_happened(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.usage = [SUM, {**SUM, "group": "", "name": "", "requests": 1}]
    ended = slice_("usage")
    assert (ended.code, ended.err) == (0, "")
    title, first, second = ended.out.splitlines()
    assert title.split() == ["KEY", "REQUESTS", "INPUT", "CACHED", "OUTPUT", "ESTIMATED", "CUT"]
    assert first.split() == ["ci", "12", "3400", "70", "560", "1", "1"]
    assert second.split()[:2] == ["-", "1"]


@pytest.mark.parametrize("by", ["key", "project", "model", "deployment", "node", "day"])
def test_usage_asks_for_what_was_said_and_prints_the_answer_as_json(
    cluster: PlayedCluster, slice_: Slice, by: str
) -> None:
    cluster.usage = [SUM]
    ended = slice_("usage", "--by", by, "--since", "2h", "-o", "json")
    assert json.loads(ended.out) == {"by": by, "items": [SUM]}


def test_a_time_without_requests_is_said_so(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("usage", "--since", "5m")
    assert (ended.code, ended.out) == (0, "")
    assert "no requests in that time" in ended.err


@pytest.mark.parametrize("arguments", [("--by", "moon"), ("--since", "yesterday")])
def test_a_word_that_usage_does_not_know_is_a_usage_error(slice_: Slice, arguments: tuple[str, str]) -> None:
    assert slice_("usage", *arguments).code == 2
