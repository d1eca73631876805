"""What operators want of engines on a node: installs that go on until they succeed, removals that respect replicas."""

import asyncio
import os
from pathlib import Path

import pytest

from adapters.fake.adapter import Fake
from core.errors import Failure
from core.states import InstallState
from node_agent.engines.house import EngineHouse, back_off_s
from tests import waiting
from tests.node_agent import trees, wheels
from tests.node_agent.houses import Demo, Program, house, nobody, order, script, told, until_state


def demo_wheel(tmp_path: Path, version: str = "1.0") -> Path:
    return wheels.wheel(tmp_path / "wheels", b"", "demo_model/__init__.py", version=version)


async def test_a_wanted_version_is_installed_and_every_step_is_told(tmp_path: Path) -> None:
    demo_wheel(tmp_path)
    heard: list[int] = []
    async with house(tmp_path, Demo(), changed=lambda: heard.append(1)) as engines:
        assert await told(engines, Demo()) is None
        engines.apply([order()], nobody)
        queued = await told(engines, Demo())
        assert queued is not None
        assert queued.state in (InstallState.QUEUED, InstallState.INSTALLING)
        ready = await until_state(engines, Demo(), InstallState.READY)
        assert (ready.message, ready.code) == ("", "")
        assert len(heard) > 3
        assert (await engines.survey((Demo(),))).ready("demo") == ("1.0",)


async def test_a_failed_install_is_tried_again_until_it_works(tmp_path: Path) -> None:
    async with house(tmp_path, Demo()) as engines:
        engines.apply([order()], nobody)
        failed = await until_state(engines, Demo(), InstallState.FAILED)
        assert failed.code == "engine.install_failed"
        assert "tried again in" in failed.message
        demo_wheel(tmp_path)
        await until_state(engines, Demo(), InstallState.READY)


async def test_a_failure_that_trying_cannot_cure_is_not_tried_again_even_by_the_next_node_agent(tmp_path: Path) -> None:
    wheel = demo_wheel(tmp_path)
    lock = tmp_path / "lock"
    lock.write_text(f"demo-model==1.0 --hash=sha256:{'0' * 64}\n")
    adapter = Demo(lock=str(lock))
    async with house(tmp_path, adapter) as engines:
        engines.apply([order()], nobody)
        failed = await until_state(engines, adapter, InstallState.FAILED)
        assert failed.code == "source.digest_mismatch"
        assert "again" not in failed.message
    lock.write_text(f"demo-model==1.0 --hash=sha256:{wheels.sha256(wheel.read_bytes())}\n")
    async with house(tmp_path, adapter) as later:
        later.apply([order()], nobody)
        assert (await until_state(later, adapter, InstallState.FAILED)).code == "source.digest_mismatch"
        later.apply([order(is_removed=True)], nobody)
        await _until_absent(later, adapter)
        later.apply([order()], nobody)
        await until_state(later, adapter, InstallState.READY)


async def test_what_is_installed_is_ready_at_once_for_the_next_node_agent(tmp_path: Path) -> None:
    wheel = demo_wheel(tmp_path)
    async with house(tmp_path, Demo()) as engines:
        engines.apply([order()], nobody)
        await until_state(engines, Demo(), InstallState.READY)
    wheel.unlink()
    async with house(tmp_path, Demo()) as later:
        later.apply([order()], nobody)
        await until_state(later, Demo(), InstallState.READY)


async def test_a_version_that_a_replica_uses_stays_and_says_who(tmp_path: Path) -> None:
    demo_wheel(tmp_path)
    users = ["rep_one"]

    def in_use(engine: str, version: str) -> tuple[str, ...]:
        return tuple(users) if (engine, version) == ("demo", "1.0") else ()

    async with house(tmp_path, Demo()) as engines:
        await engines.ensure("demo", "1.0")
        engines.apply([order(is_removed=True)], in_use)
        await trees.until(lambda: engines.installed(Demo()))
        held = await until_state(engines, Demo(), InstallState.READY)
        while not held.code:
            held = await until_state(engines, Demo(), InstallState.READY)
        assert (held.code, "rep_one" in held.message) == ("engine.in_use", True)
        assert engines.installed(Demo()) == ("1.0",)
        users.clear()
        engines.apply([order(is_removed=True)], in_use)
        await _until_absent(engines, Demo())
        assert not (tmp_path / "engines/demo/1.0").exists()


async def test_a_version_that_cannot_be_removed_says_so_under_a_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "engines/demo").mkdir(parents=True)
    (tmp_path / "engines/demo/1.0").write_text("no directory, so nothing can be taken out of it")
    async with house(tmp_path, Demo()) as engines:
        engines.apply([order(is_removed=True)], nobody)
        kept = await until_state(engines, Demo(), InstallState.FAILED)
        assert (kept.code, kept.message) == ("engine.remove_failed", "it cannot be removed: not a directory")


async def test_a_wish_that_is_withdrawn_ends_the_trying_but_removes_nothing(tmp_path: Path) -> None:
    demo_wheel(tmp_path)
    async with house(tmp_path, Demo()) as engines:
        engines.apply([order(), order("7.0")], nobody)
        await until_state(engines, Demo(), InstallState.READY)
        await until_state(engines, Demo(), InstallState.FAILED, "7.0")
        engines.apply([], nobody)
        assert await told(engines, Demo(), "7.0") is None
        assert (await until_state(engines, Demo(), InstallState.READY)).version == "1.0"


async def _until_absent(engines: EngineHouse, adapter: Fake) -> None:
    async def is_absent() -> bool:
        return await told(engines, adapter) is None

    await waiting.until_async(is_absent)


def test_the_back_off_grows_to_ten_minutes() -> None:
    assert [back_off_s(attempts, 0.5) for attempts in (1, 2, 3, 7, 100)] == [15, 30, 60, 600, 600]
    assert back_off_s(1, 0.0) == pytest.approx(12)


# -- programs ---------------------------------------------------------------------------------------------------------


async def test_a_program_on_the_path_is_found_and_asked_once_for_its_version(tmp_path: Path) -> None:
    program = script(tmp_path / "bin/demoserve", "2.0")
    async with house(tmp_path, Program()) as engines:
        for _ in range(3):
            assert (await engines.survey((Program(),))).executables == {"demoserve": str(program)}
            await until_state(engines, Program(), InstallState.READY, "2.0")
        survey = await engines.survey((Program(),))
        assert survey.ready("demo") == ("2.0",)
        assert survey.executables == {"demoserve": str(program)}
        assert survey.installs["demo"][0].message == f"found at {program}"
        assert (await engines.ensure("demo", "")).executable == str(program)
        assert (await engines.ensure("demo", "2.0")).executable == str(program)
        assert Path(f"{program}.asked").read_text() == "x\n"
        script(program, "2.10.1")
        os.utime(program, (1, 1))
        await until_state(engines, Program(), InstallState.READY, "2.10.1")
        assert (await engines.survey((Program(),))).ready("demo") == ("2.10.1",)


async def test_a_program_that_hangs_on_its_version_delays_no_survey(tmp_path: Path) -> None:
    program = script(tmp_path / "bin/demoserve", "2.0")
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    async with house(tmp_path, Program()) as engines:
        async with asyncio.timeout(2):
            survey = await engines.survey((Program(),))
        assert survey.executables == {"demoserve": str(program)}
        pid = await trees.until(lambda: trees.pid_in(tmp_path / "pid"))
    assert trees.is_gone(pid)


async def test_a_program_that_does_not_say_its_version_is_found_all_the_same(tmp_path: Path) -> None:
    program = script(tmp_path / "bin/demoserve", "none at all")
    program.write_text("#!/bin/sh\necho nothing\n")
    async with house(tmp_path, Program()) as engines:
        survey = await engines.survey((Program(),))
        assert survey.ready("demo") == ()
        assert survey.executables == {"demoserve": str(program)}
        assert (await engines.ensure("demo", "")).executable == str(program)


async def test_a_program_that_is_nowhere_is_an_error_that_names_the_next_step(tmp_path: Path) -> None:
    async with house(tmp_path, Program()) as engines:
        with pytest.raises(Failure, match="'demoserve' is not on this node") as caught:
            await engines.ensure("demo", "")
        assert caught.value.code == "engine.not_installed"
        assert "slice engine install demo@" in caught.value.hint


async def test_an_installed_program_stands_beside_the_paths_and_a_pin_chooses(tmp_path: Path) -> None:
    on_path = script(tmp_path / "bin/demoserve", "2.0")
    given = script(tmp_path / "given/demoserve", "2.1")
    async with house(tmp_path, Program()) as engines:
        engines.apply([order("2.1", source=f"file:{given}#file={wheels.sha256(given.read_bytes())}")], nobody)
        ready = await until_state(engines, Program(), InstallState.READY, "2.1")
        assert ready.digest == wheels.sha256(given.read_bytes())
        installed = tmp_path / "engines/demo/2.1/bin/demoserve"
        assert (await engines.ensure("demo", "2.1")).executable == str(installed)
        assert (await engines.ensure("demo", "2.0")).executable == str(on_path)
        assert (await engines.ensure("demo", "")).executable == str(installed)
        with pytest.raises(Failure, match=r"demo 3\.0 is not on this node; here are 2\.1, 2\.0"):
            await engines.ensure("demo", "3.0")
        engines.apply([order("2.1", is_removed=True), order("2.0", is_removed=True)], nobody)
        await trees.until(lambda: not installed.exists())
        kept = await until_state(engines, Program(), InstallState.READY, "2.0")
        assert (kept.code, "found at" in kept.message) == ("engine.not_installed", True)


async def test_a_program_of_another_version_than_asked_for_is_not_installed(tmp_path: Path) -> None:
    given = script(tmp_path / "given/demoserve", "2.1")
    async with house(tmp_path, Program()) as engines:
        engines.apply([order("3.0", source=f"file:{given}")], nobody)
        failed = await until_state(engines, Program(), InstallState.FAILED, "3.0")
        assert failed.code == "engine.version_unknown"
        assert "says that it is demo 2.1, not 3.0" in failed.message
        assert not (tmp_path / "engines/demo/3.0").exists()


async def test_a_program_without_a_source_says_where_to_give_one(tmp_path: Path) -> None:
    async with house(tmp_path, Program()) as engines:
        engines.apply([order("2.0")], nobody)
        failed = await until_state(engines, Program(), InstallState.FAILED, "2.0")
        assert "--from" in failed.message
