"""One running engine of each kind for the whole suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.engines import RunningEngine
from tests.ggufs import write_random_llama

CONTEXT = 512


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("models") / "random.gguf", seed=7, context=CONTEXT)


@pytest.fixture(scope="session", params=["fake", "llamacpp"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, random_model: Path
) -> Iterator[RunningEngine]:
    directory = tmp_path_factory.mktemp(request.param)
    with RunningEngine(
        request.param, directory=directory, model=random_model, settings={"context": CONTEXT}
    ) as running:
        yield running.wait_until_ready()
