"""Models of a hub: the real `huggingface_hub` in its child process, against a hub on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import Failure
from node_agent.files import wiring
from node_agent.files.origins import SourceOrigins
from node_agent.files.wants import FileOrder, FileProgress
from tests.fakes import hub as hubs
from tests.fakes.hub import Hub
from tests.fakes.web import Thing
from tests.node_agent import trees, wheels
from tests.node_agent.benches import QUICK, Bench, bench, safetensors_bytes, sha256

WEIGHTS = safetensors_bytes(count=30_000)
GGUF = wheels.gguf_bytes(padding=25_000)
MODEL = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80\x02pickle",
    "modeling.py": b"import os",
    "README.md": b"# demo",
}
GGUFS = {"demo-Q4_K_M.gguf": GGUF, "demo-Q8_0.gguf": wheels.gguf_bytes(padding=26_000), "README.md": b"# demo"}


@asynccontextmanager
async def node(tmp_path: Path, hub: Hub, **settings: object) -> AsyncIterator[Bench]:
    origins = SourceOrigins(hf_endpoint=hub.url, **settings)
    outside = wiring.Outside(look_s=0.05, bounds=QUICK)
    async with bench(tmp_path, origins=origins, outside=outside) as it:
        yield it


async def pulled(it: Bench, source: str, want_id: str = "pul_1", **more: object) -> FileProgress:
    it.pulls.apply([FileOrder(source=source, want_id=want_id, **more)])
    await trees.until(lambda: it.progress(want_id).state in {"done", "failed"}, 30)
    return it.progress(want_id)


def token_file(tmp_path: Path, text: str = "hf_secret", mode: int = 0o600) -> str:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


async def test_a_safetensors_repository_comes_whole_pinned_and_never_twice(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        commit = hub.repository("org/demo").commit(MODEL)
        async with node(tmp_path, hub) as it:
            done = await pulled(it, "hf:org/demo", formats=("safetensors",))
            assert (done.state, done.message) == ("done", "")
            paths = [part.path for part in done.version_files]
            assert paths == ["model.safetensors", "chat_template.jinja", "config.json", "tokenizer.json"]
            assert done.resolved_source == f"hf:org/demo@{commit}:safetensors"
            assert done.sha256 == sha256(WEIGHTS)
            assert done.version_files[2].source == (
                f"hf:org/demo@{commit}:config.json#file={sha256(MODEL['config.json'])}"
            )
            for part in done.version_files:
                assert it.store.path_of(part.sha256).read_bytes() == MODEL[part.path]
            assert not [name for name in it.files() if name.startswith(("downloads", "tmp"))]
            before = hub.requests()
            again = await pulled(it, done.resolved_source, "pul_2", formats=("safetensors",))
            assert replace(again, want_id="pul_1") == done
            assert hub.requests() == before


async def test_each_file_can_be_fetched_alone_by_another_node_without_asking_for_a_listing(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(MODEL)
        async with node(tmp_path / "one", hub) as it:
            parts = (await pulled(it, "hf:org/demo")).version_files
        before = hub.requests()
        async with node(tmp_path / "other", hub) as other:
            for part in parts:
                order = FileOrder(source=part.source, sha256=part.sha256, size_bytes=part.size_bytes, path=part.path)
                assert (await other.pulls.ensure(order)).sha256 == part.sha256
            assert not [one for one in hub.site.seen[before:] if one.path.startswith("/api/")]
            since = hub.requests()
            await other.pulls.ensure(FileOrder(source=parts[0].source, sha256=parts[0].sha256))
            assert hub.requests() == since


@pytest.mark.parametrize(
    ("selector", "path"),
    [
        ("", "demo-Q4_K_M.gguf"),
        (":q8_0", "demo-Q8_0.gguf"),
        (":demo-Q8_0.gguf", "demo-Q8_0.gguf"),
        ("@main:Q8_0", "demo-Q8_0.gguf"),
    ],
)
async def test_a_gguf_is_chosen_and_the_resolved_source_names_it(tmp_path: Path, selector: str, path: str) -> None:
    with hubs.hub() as hub:
        commit = hub.repository("org/demo").commit(GGUFS)
        async with node(tmp_path, hub) as it:
            done = await pulled(it, f"hf:org/demo{selector}", formats=("gguf",))
            assert [part.path for part in done.version_files] == [path]
            assert done.resolved_source == f"hf:org/demo@{commit}:{path}#file={done.sha256}"
            assert '"architecture": "llama"' in done.facts_json


async def test_all_parts_of_a_split_gguf_come_the_first_one_first(tmp_path: Path) -> None:
    parts = {f"big-Q4_K_M-0000{n}-of-00002.gguf": wheels.gguf_bytes(padding=n) for n in (2, 1)}
    with hubs.hub() as hub:
        hub.repository("org/big").commit(parts)
        async with node(tmp_path, hub) as it:
            done = await pulled(it, "hf:org/big:Q4_K_M")
            assert [part.path for part in done.version_files] == sorted(parts)


async def test_a_branch_that_moved_is_a_new_version_and_only_what_changed_comes(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        repository = hub.repository("org/demo")
        first = repository.commit(MODEL)
        async with node(tmp_path, hub) as it:
            before = await pulled(it, "hf:org/demo@main")
            second = repository.commit({**MODEL, "config.json": b'{"changed": true}'})
            since = hub.requests()
            after = await pulled(it, "hf:org/demo@main", "pul_2")
            assert first in before.resolved_source
            assert second in after.resolved_source
            assert [one.path for one in hub.site.seen[since:]] == [
                "/api/models/org/demo/revision/main",
                f"/org/demo/resolve/{second}/config.json",
            ]
            assert (await pulled(it, before.resolved_source, "pul_3")).version_files == before.version_files


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("hf:org/nothing", "source.not_found", "no repository org/nothing"),
        ("hf:org/demo@nowhere", "source.not_found", "no revision 'nowhere'"),
        ("hf:org/demo@" + "0" * 40, "source.not_found", "no revision"),
        ("hf:org/demo:Q4_K_M", "source.not_found", "no file and no quantisation 'Q4_K_M'"),
        ("hf:org/demo:pytorch_model.bin", "format.refused", "pickled"),
    ],
)
async def test_what_a_hub_does_not_have_says_so_in_our_words(
    tmp_path: Path, source: str, code: str, words: str
) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(MODEL)
        async with node(tmp_path, hub) as it:
            failed = await pulled(it, source)
            assert (failed.state, failed.code) == ("failed", code)
            assert words in failed.message
            assert it.files() == []


@pytest.mark.parametrize(
    ("path", "lie", "code"),
    [
        ("model.safetensors", {"sha256": "0" * 64}, "source.digest_mismatch"),
        ("config.json", {"blobId": "0" * 40}, "source.digest_mismatch"),
        ("config.json", {"size": 7}, "source.digest_mismatch"),
        ("model.safetensors", {"size": len(WEIGHTS) + 1}, "source.digest_mismatch"),
        ("model.safetensors", {"size": 10**30}, "source.invalid"),
    ],
    ids=["sha256", "git digest", "shorter", "longer", "endless"],
)
async def test_a_hub_that_lies_about_a_file_leaves_nothing_behind(
    tmp_path: Path, path: str, lie: dict[str, object], code: str
) -> None:
    with hubs.hub() as hub:
        repository = hub.repository("org/demo")
        repository.commit(MODEL)
        repository.lies[path] = lie
        async with node(tmp_path, hub) as it:
            failed = await pulled(it, "hf:org/demo")
            assert (failed.state, failed.code) == ("failed", code)
            assert it.files() == []


@pytest.mark.parametrize(
    "data", [b"\x80\x02}q\x00" + b"\x00" * 90, b"PK\x03\x04" + b"\x00" * 90], ids=["pickle", "zip"]
)
async def test_a_pickle_under_the_name_of_safetensors_is_refused_and_leaves_nothing(
    tmp_path: Path, data: bytes
) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit({**MODEL, "model.safetensors": data})
        async with node(tmp_path, hub) as it:
            failed = await pulled(it, "hf:org/demo")
            assert failed.code == "format.refused"
            assert "starts with a pickle/zip signature" in failed.message
            assert it.files() == []


async def test_a_large_pickle_is_refused_after_its_first_bytes(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit({**MODEL, "model.safetensors": b"\x80\x02}q\x00" + b"\x00" * 100_000})
        async with node(tmp_path, hub) as it:
            assert (await pulled(it, "hf:org/demo")).code == "format.refused"
            blobs = [one for one in hub.site.seen if one.path.startswith("/blobs/")]
            assert [one.range for one in blobs] == ["bytes=0-999"]


async def test_a_gated_model_needs_the_token_which_its_object_store_never_hears(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo", secret="hf_secret").commit(MODEL)
        async with node(tmp_path / "without", hub) as it:
            failed = await pulled(it, "hf:org/demo")
            assert failed.code == "source.needs_token"
            assert "hf_token_file" in failed.message
            assert it.files() == []
        async with node(tmp_path / "with", hub, hf_token_file=token_file(tmp_path)) as it:
            assert (await pulled(it, "hf:org/demo")).state == "done"
            assert not [name for name in it.files() if b"hf_secret" in (it.root / name).read_bytes()]


async def test_a_private_model_is_listed_with_the_token_alone(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo", secret="hf_secret", is_private=True).commit(MODEL)
        async with node(tmp_path / "without", hub) as it:
            failed = await pulled(it, "hf:org/demo")
            assert failed.code == "source.not_found"
            assert "hf_token_file" in failed.message
        async with node(tmp_path / "with", hub, hf_token_file=token_file(tmp_path)) as it:
            assert (await pulled(it, "hf:org/demo")).state == "done"


@pytest.mark.parametrize(
    ("text", "mode"), [("hf_secret", 0o644), ("two words", 0o600), ("", 0o600)], ids=["open", "no token", "empty"]
)
async def test_a_token_file_that_is_none_is_a_fault_of_the_settings(tmp_path: Path, text: str, mode: int) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(MODEL)
        async with node(tmp_path, hub, hf_token_file=token_file(tmp_path, text, mode)) as it:
            failed = await pulled(it, "hf:org/demo")
            assert failed.code == "settings.invalid"
            assert "two words" not in failed.message
            assert hub.requests() == 0


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
async def test_an_answer_of_two_hundred_megabytes_does_no_harm(tmp_path: Path, is_chunked: bool) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(MODEL)
        hub.padding, hub.is_chunked = 200 * 1000**2, is_chunked
        async with node(tmp_path, hub) as it:
            failed = await pulled(it, "hf:org/demo")
            assert failed.code == "source.invalid"
            assert "too large" in failed.message
            hub.padding = 0
            assert (await pulled(it, "hf:org/demo", "pul_2")).state == "done"


async def test_a_hub_that_leads_its_client_elsewhere_is_not_followed(tmp_path: Path) -> None:
    with hubs.hub() as hub, hubs.hub() as other:
        hub.redirect_listing = f"{other.url}/api/models/org/demo"
        async with node(tmp_path, hub) as it:
            assert (await pulled(it, "hf:org/demo")).code == "source.not_allowed"
            assert other.requests() == 0


async def test_a_file_that_is_redirected_inside_is_refused(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(MODEL)
        hub.faults["config.json"] = Thing(location="http://169.254.169.254/latest/meta-data")
        async with node(tmp_path, hub) as it:
            failed = await pulled(it, "hf:org/demo")
            assert failed.code == "source.not_allowed"
            assert "169.254" not in failed.message
            assert it.files() == []


async def test_a_cancelled_pull_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(MODEL)
        hub.faults["model.safetensors"] = Thing(data=WEIGHTS, hold_after=900)
        async with node(tmp_path, hub) as it:
            it.pulls.apply([FileOrder(source="hf:org/demo", want_id="pul_1")])
            await trees.until(lambda: it.progress().bytes_done > 900, 30)
            it.pulls.apply([FileOrder(source="hf:org/demo", want_id="pul_1", is_cancelled=True)])
            assert it.progress().state == "cancelled"
            await trees.until(lambda: it.files() == [], 2)


async def test_a_node_agent_that_begins_anew_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        commit = hub.repository("org/demo").commit(MODEL)
        thing = hub.faults["model.safetensors"] = Thing(data=WEIGHTS, hold_after=900)
        source = f"hf:org/demo@{commit}"
        async with node(tmp_path, hub) as it:
            it.pulls.apply([FileOrder(source=source, want_id="pul_1")])
            await trees.until(lambda: it.progress().bytes_done > 900, 30)
        thing.hold_after = -1
        before = hub.requests()
        async with node(tmp_path, hub) as later:
            await later.pulls.open()
            assert (await pulled(later, source)).state == "done"
            blobs = [one for one in hub.site.seen[before:] if one.path.startswith("/blobs/")]
            assert blobs[0].range.startswith("bytes=900-")


async def test_many_who_want_one_repository_share_one_download(tmp_path: Path) -> None:
    with hubs.hub() as hub:
        hub.repository("org/demo").commit(GGUFS)
        async with node(tmp_path, hub) as it:
            it.pulls.apply([FileOrder(source="hf:org/demo:Q8_0", want_id=f"pul_{n}") for n in range(3)])
            await asyncio.gather(*(it.until("done", f"pul_{n}") for n in range(3)))
            assert len([one for one in hub.site.seen if one.path.startswith("/api/")]) == 1


async def test_a_hub_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with hubs.hub() as gone:
        pass
    async with node(tmp_path, gone) as it:
        with pytest.raises(Failure) as caught:
            await it.pulls.ensure(FileOrder(source="hf:org/demo"))
        assert (caught.value.code, caught.value.retry.value) == ("source.unreachable", "later")
