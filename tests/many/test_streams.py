"""Fifty streams of two engines on three machines, and one machine in trouble: nothing hangs, nothing is cut in silence.

Here two troubles; `SLICE_MANY=full`, as `make soak` sets it, has all of them. What they cost is printed as a table.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.many.losses import END_S, ON_PURPOSE, STREAMS, TROUBLES, Losing, two_engines
from tests.many.streams import HEADER, Toll

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]
SHORT = ("suspended", "rebooted")
"""What `test_three_nodes` has no form of; the other troubles are there with requests instead of long streams."""
CHOSEN = tuple(TROUBLES) if os.environ.get("SLICE_MANY") == "full" else SHORT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def losing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Losing]:
    directory: Path = tmp_path_factory.mktemp("model")
    async with two_engines(directory) as found:
        yield found


@pytest.mark.parametrize("how", CHOSEN)
async def test_streams_outlive_trouble_elsewhere_and_end_in_words_where_it_is(losing: Losing, how: str) -> None:
    toll = await losing.meet(how)
    print(f"\n{' | '.join(HEADER)}\n{' | '.join(toll.cells())}")
    assert toll.silent == 0
    assert set(toll.spared) == {"whole"}
    assert set(toll.after) <= {"whole"}
    assert toll.struck.total() + toll.spared.total() >= STREAMS
    if how in ON_PURPOSE:
        assert refused(toll) == 0
    else:
        assert toll.told_within_s is not None
        assert toll.told_within_s < END_S


def refused(toll: Toll) -> int:
    """Return how many streams of all were not whole."""
    everyone = (toll.struck, toll.spared, toll.between, toll.after)
    return sum(count for found in everyone for outcome, count in found.items() if outcome != "whole")
