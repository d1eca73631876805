"""One cluster for the tests that leave it as they found it; tests that break things for good start their own."""

from collections.abc import Iterator

import pytest

from tests.system.cluster import Running, a_cluster


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """A cluster with the starter model serving."""
    with a_cluster() as made:
        made.up()
        yield made
