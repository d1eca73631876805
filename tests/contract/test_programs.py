"""What concerns one engine's own program: how it ends when it cannot begin, and what it says then."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.contract import Endpoint
from tests.contract.conftest import Absent
from tests.contract.engines import Contestant
from tests.contract.stage import Served, Stage
from tests.ggufs import write_random_llama
from tests.node_agent.wheels import gguf_bytes
from tests.waiting import until


@pytest.fixture
def gone() -> Iterator[list[Served]]:
    made: list[Served] = []
    yield made
    for served in made:
        served.remove()


def test_a_taken_port_ends_a_program_of_ours_with_a_reason(
    contestant: Contestant, served: Served, absent: Absent
) -> None:
    """Its own command line once more, while it runs: the port is taken, by itself."""
    if not contestant.is_our_program:
        absent("not our program: the node agent knows a taken port by its log")
        return
    argv = [word.decode() for word in Path(f"/proc/{served.pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 4
    assert str(served.port) in ended.stderr.splitlines()[-1]


def test_llamacpp_ends_at_once_when_told_while_it_loads(stage: Stage, tmp_path: Path, gone: list[Served]) -> None:
    big = write_random_llama(tmp_path / "big.gguf", seed=1, layers=6, embedding=512, vocabulary=20_000)
    served = stage.deploy("llamacpp", name="big", model=big)
    gone.append(served)
    until(lambda: "loading model" in served.log(), what="the load's beginning")
    served.ask_to_stop()
    served.until_state("stopped", 3.0)
    assert "slice: serving" not in served.log()


def test_llamacpp_says_why_a_model_does_not_load(stage: Stage, tmp_path: Path, gone: list[Served]) -> None:
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(gguf_bytes(architecture="nonsense"))
    served = stage.deploy("llamacpp", name="strange", model=strange)
    gone.append(served)
    report = served.until_state("backoff")
    assert (report.code, report.exit_code) == ("engine.died_at_start", 3)
    assert report.log_tail[-1].startswith("slice: llama.cpp did not load")
    assert any("nonsense" in line for line in report.log_tail)


def test_an_embedding_above_one_batch_is_an_overflow_too(stage: Stage, models: Path, gone: list[Served]) -> None:
    model = write_random_llama(models / "small.gguf", seed=7, context=512)
    served = stage.deploy("llamacpp", name="narrow", model=model, settings={"batch": 64, "context": 512})
    gone.append(served)
    served.wait_until_ready()
    for length in (100, 10_000):
        reply = served.ask(Endpoint.EMBEDDINGS, {"input": "x" * length})
        assert (reply.status, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
