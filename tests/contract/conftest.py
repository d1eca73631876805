"""One node agent and one door for the whole suite, and each engine deployed there once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.engines import CONTESTANTS, Contestant, random_gguf, stand_ins
from tests.contract.stage import Served, Stage

Absent = Callable[[str], None]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("contract")
    before_path = stand_ins(directory / "programs", gguf_twin=random_gguf(models))
    with Stage(directory / "stage", before_path=before_path) as running:
        yield running


@pytest.fixture(scope="session", params=CONTESTANTS, ids=lambda one: one.label)
def contestant(request: pytest.FixtureRequest) -> Contestant:
    one: Contestant = request.param
    if one.is_slow and not request.config.pluginmanager.hasplugin("engines-matrix"):
        pytest.skip("it takes minutes: `make engines-test` runs it")
    return one


@pytest.fixture(scope="session")
def served(stage: Stage, contestant: Contestant, models: Path) -> Iterator[Served]:
    """The engine's replica that every test shares; those that kill it leave it serving."""
    if why := contestant.missing():
        pytest.skip(why)
    made = stage.deploy(
        contestant.engine,
        name=contestant.name,
        model=contestant.model and contestant.model(models),
        settings=contestant.settings,
    )
    yield made.wait_until_ready()
    made.remove()


@pytest.fixture(scope="session")
def caller(stage: Stage, contestant: Contestant, served: Served, models: Path) -> Served:
    """The engine with a model that calls `set_light` whatever it is asked, where there is one."""
    if contestant.calling_model is None:
        return served
    return stage.deploy(
        contestant.engine,
        name=f"{contestant.name}-calling",
        model=contestant.calling_model(models),
        settings={**contestant.settings, "context": 2048},
    ).wait_until_ready()


@pytest.fixture
def absent(record_property: Callable[[str, object], None]) -> Absent:
    """Says that the engine declares not to have what the test is about: the matrix shows `absent` for a pass."""
    return lambda what: record_property("absent", what)
