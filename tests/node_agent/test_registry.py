"""Models of an Ollama registry on loopback, files of the web, and folders of the node's own disk."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.errors import Failure
from core.sources import parse_source
from node_agent.files import wiring
from node_agent.files.ollama import read_layers
from node_agent.files.origins import SourceOrigins
from node_agent.files.wants import FileOrder, FileProgress
from tests.fakes import registry as registries
from tests.fakes import web
from tests.node_agent import trees, wheels
from tests.node_agent.benches import QUICK, Bench, bench, safetensors_bytes, sha256

GGUF = wheels.gguf_bytes(padding=25_000)
LAYERS = [
    ("license", b"MIT"),
    ("model", GGUF),
    ("template", b"{{ .Prompt }}"),
    ("params", b'{"stop": ["<|im_end|>"]}'),
    ("license", b"Apache-2.0"),
]


@asynccontextmanager
async def node(tmp_path: Path, **settings: object) -> AsyncIterator[Bench]:
    outside = wiring.Outside(look_s=0.05, bounds=QUICK)
    async with bench(tmp_path, origins=SourceOrigins(**settings), outside=outside) as it:
        yield it


async def pulled(it: Bench, source: str, want_id: str = "pul_1", **more: object) -> FileProgress:
    it.pulls.apply([FileOrder(source=source, want_id=want_id, **more)])
    await trees.until(lambda: it.progress(want_id).state in {"done", "failed"}, 20)
    return it.progress(want_id)


# -- Ollama -----------------------------------------------------------------------------------------------------------


async def test_a_model_of_a_registry_comes_with_its_texts_the_weights_first(tmp_path: Path) -> None:
    with registries.registry() as registry:
        digests = registry.push("library/demo", "135m", LAYERS)
        async with node(tmp_path, ollama_registry=registry.url) as it:
            done = await pulled(it, "ollama:demo:135m")
            assert (done.state, done.message) == ("done", "")
            assert [part.path for part in done.version_files] == [
                *("demo.gguf", "ollama/license", "ollama/template", "ollama/params", "ollama/license-2")
            ]
            assert done.resolved_source == f"ollama:demo:135m#manifest={digests['manifest']}"
            assert done.version_files[2].source.startswith(f"ollama:demo:135m@sha256:{digests['template']}")
            assert it.store.path_of(sha256(b"Apache-2.0")).read_bytes() == b"Apache-2.0"
            before = len(registry.site.seen)
            assert (await pulled(it, "ollama:demo:135m", "pul_2")).version_files == done.version_files
            assert [one.path for one in registry.site.seen[before:]] == ["/v2/library/demo/manifests/135m"]
            await pulled(it, done.resolved_source, "pul_3")
            assert len(registry.site.seen) == before + 1


async def test_a_model_of_weights_alone_is_pinned_by_them(tmp_path: Path) -> None:
    with registries.registry() as registry:
        digests = registry.push("library/demo", "latest", [("model", GGUF)])
        async with node(tmp_path, ollama_registry=registry.url) as it:
            done = await pulled(it, "ollama:demo")
            assert done.resolved_source == f"ollama:demo@sha256:{digests['model']}#file={digests['model']}"


async def test_another_node_gets_all_that_a_pinned_manifest_names_even_when_the_tag_has_moved(tmp_path: Path) -> None:
    with registries.registry() as registry:
        registry.push("library/demo", "135m", LAYERS)
        async with node(tmp_path / "one", ollama_registry=registry.url) as it:
            first = await pulled(it, "ollama:demo:135m")
        registry.push("library/demo", "135m", [*LAYERS[:2], ("template", b"{{ .Other }}")])
        async with node(tmp_path / "other", ollama_registry=registry.url) as other:
            again = await pulled(other, first.resolved_source)
            assert (again.version_files, again.resolved_source) == (first.version_files, first.resolved_source)
            moved = await pulled(other, "ollama:demo:135m", "pul_2")
            assert len(moved.version_files) == 3
            assert moved.resolved_source != first.resolved_source


@pytest.mark.parametrize("is_moved", [True, False], ids=["moved", "deleted"])
async def test_a_pinned_manifest_that_the_registry_has_not_kept_is_refused(tmp_path: Path, is_moved: bool) -> None:
    with registries.registry() as registry:
        digests = registry.push("library/demo", "latest", LAYERS)
        del registry.site.things[f"/v2/library/demo/blobs/sha256:{digests['manifest']}"]
        if is_moved:
            registry.push("library/demo", "latest", [("model", GGUF)])
        else:
            del registry.site.things["/v2/library/demo/manifests/latest"]
        async with node(tmp_path, ollama_registry=registry.url) as it:
            failed = await pulled(it, f"ollama:demo#manifest={digests['manifest']}")
            assert failed.code == "source.digest_mismatch"
            assert it.files() == []


async def test_each_blob_can_be_fetched_alone_by_another_node(tmp_path: Path) -> None:
    with registries.registry() as registry:
        registry.push("library/demo", "latest", LAYERS)
        async with node(tmp_path / "one", ollama_registry=registry.url) as it:
            parts = (await pulled(it, "ollama:demo")).version_files
        async with node(tmp_path / "other", ollama_registry=registry.url) as other:
            before = len(registry.site.seen)
            for part in parts:
                order = FileOrder(source=part.source, sha256=part.sha256, size_bytes=part.size_bytes, path=part.path)
                assert (await other.pulls.ensure(order)).sha256 == part.sha256
            assert not [one for one in registry.site.seen[before:] if "manifests" in one.path]


async def test_a_registry_named_in_the_source_must_be_public_or_configured(tmp_path: Path) -> None:
    with registries.registry() as registry:
        registry.push("me/demo", "latest", LAYERS)
        source = f"ollama:127.0.0.1:{registry.site.port}/me/demo"
        async with node(tmp_path / "one") as it:
            assert (await pulled(it, source)).code == "source.not_allowed"
        async with node(tmp_path / "two", source_hosts=registry.url) as it:
            done = await pulled(it, source)
            assert done.state == "done"
            assert done.resolved_source.startswith(f"{source}#manifest=")


@pytest.mark.parametrize(
    ("layers", "code", "words"),
    [
        ([("model", GGUF), ("projector", GGUF)], "source.unsupported", "projector"),
        ([("model", GGUF), ("adapter", GGUF)], "source.unsupported", "adapter"),
        ([("tensor", GGUF)], "source.unsupported", "tensor"),
        ([("template", b"x")], "source.unsupported", "0 model layers"),
        ([("model", b"\x80\x02}q\x00" + b"\x00" * 90)], "format.refused", "pickle/zip signature"),
        ([("model", GGUF), ("template", b"\xff\xfe")], None, ""),
    ],
    ids=["projector", "adapter", "tensors", "no model", "pickle", "a template in another encoding"],
)
async def test_what_is_no_single_gguf_is_refused_clearly(
    tmp_path: Path, layers: list[tuple[str, bytes]], code: str | None, words: str
) -> None:
    with registries.registry() as registry:
        registry.push("library/demo", "latest", layers)
        async with node(tmp_path, ollama_registry=registry.url) as it:
            outcome = await pulled(it, "ollama:demo")
            assert outcome.code == (code or "")
            assert words in outcome.message
            assert (it.files() == []) == (code is not None)


async def test_a_blob_that_is_not_what_its_digest_says_leaves_nothing(tmp_path: Path) -> None:
    with registries.registry() as registry:
        digests = registry.push("library/demo", "latest", LAYERS)
        registry.site.things[f"/v2/library/demo/blobs/sha256:{digests['model']}"].data = GGUF[:-1] + b"x"
        async with node(tmp_path, ollama_registry=registry.url) as it:
            assert (await pulled(it, "ollama:demo")).code == "source.digest_mismatch"
            assert it.files() == []


async def test_an_unknown_tag_is_not_found(tmp_path: Path) -> None:
    with registries.registry() as registry:
        async with node(tmp_path, ollama_registry=registry.url) as it:
            assert (await pulled(it, "ollama:demo:nothing")).code == "source.not_found"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"layers": 1}',
        b'{"layers": [1]}',
        b'{"layers": [{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]}',
        b'{"layers": [{"mediaType": "x", "digest": "sha256:' + b"a" * 64 + b'", "size": -1}]}',
        b'{"layers": [{"mediaType": "x", "digest": "sha256:' + b"a" * 64 + b'", "size": 1%s}]}' % (b"0" * 30),
        b"[" * 100_000,
        json.dumps({"layers": [{}] * 1000}).encode(),
    ],
    ids=["empty", "list", "no layers", "number", "no layer", "path", "negative", "endless", "deep", "many"],
)
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(Failure) as caught:
        read_layers(parse_source("ollama:demo"), body)
    assert caught.value.code == "source.invalid"


async def test_a_manifest_without_end_is_cut(tmp_path: Path) -> None:
    with registries.registry() as registry:
        registry.site.put("/v2/library/demo/manifests/latest", b"x" * 5 * 1024**2)
        async with node(tmp_path, ollama_registry=registry.url) as it:
            assert (await pulled(it, "ollama:demo")).code == "source.invalid"


# -- the web ----------------------------------------------------------------------------------------------------------


async def test_a_file_of_the_web_is_pinned_by_what_came(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/a/demo.gguf", GGUF)
        source = f"https://127.0.0.1:{site.port}/a/demo.gguf?download=1"
        async with node(tmp_path, source_hosts=site.url) as it:
            done = await pulled(it, source)
            assert done.resolved_source == f"{source}#file={sha256(GGUF)}"
            assert [(part.path, part.source) for part in done.version_files] == [("demo.gguf", done.resolved_source)]
            before = len(site.seen)
            assert (await pulled(it, done.resolved_source, "pul_2")).state == "done"
            assert len(site.seen) == before


async def test_a_web_page_instead_of_a_model_is_refused(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/demo", b"<html>please log in</html>" * 100)
        async with node(tmp_path, source_hosts=site.url) as it:
            assert (await pulled(it, f"https://127.0.0.1:{site.port}/demo")).code == "format.refused"
            assert it.files() == []


async def test_the_nodes_own_network_is_not_reached_by_a_source(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/demo.gguf", GGUF)
        async with node(tmp_path) as it:
            for host in ("127.0.0.1", "localhost"):
                failed = await pulled(it, f"https://{host}:{site.port}/demo.gguf", f"pul_{host}")
                assert failed.code == "source.not_allowed"
            assert site.seen == []


# -- folders ----------------------------------------------------------------------------------------------------------


def hub_cache(root: Path) -> Path:
    """Make a folder as hub caches do: names that are links to blobs."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "abc"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    files = {"config.json": b"{}", "model.safetensors": safetensors_bytes(), "tokenizer.json": b"{}", "run.py": b"1"}
    for name, data in files.items():
        (blobs / sha256(data + name.encode())).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{sha256(data + name.encode())}")
    (snapshot / "dangling.json").symlink_to("nowhere")
    (snapshot / "outside").symlink_to("/etc")
    os.mkfifo(snapshot / "generation_config.json")
    return snapshot


async def test_a_folder_of_links_is_stored_file_by_file_with_its_digests(tmp_path: Path) -> None:
    folder = hub_cache(tmp_path / "cache")
    async with node(tmp_path) as it:
        done = await pulled(it, f"file:{folder}", formats=("safetensors",))
        assert [part.path for part in done.version_files] == ["model.safetensors", "config.json", "tokenizer.json"]
        assert done.version_files[1].source == f"file:{folder}/config.json#file={sha256(b'{}')}"
        for part in done.version_files:
            assert not it.store.path_of(part.sha256).is_symlink()
            assert sha256(it.store.path_of(part.sha256).read_bytes()) == part.sha256
        assert not [name for name in it.files() if "partial" in name]


async def test_a_name_that_is_no_text_is_left_out_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/a-\xe9.gguf")).write_bytes(GGUF)
    (folder / "b.gguf").write_bytes(GGUF)
    async with node(tmp_path) as it:
        done = await pulled(it, f"file:{folder}", formats=("gguf",))
        assert [part.path for part in done.version_files] == ["b.gguf"]


async def test_a_fault_of_ours_ends_the_pull_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "b.gguf"
    file.write_bytes(GGUF)
    monkeypatch.setattr("node_agent.files.local.local_manifest", lambda *_: {}["unexpected"])
    async with node(tmp_path) as it:
        failed = await pulled(it, f"file:{file}")
        assert (failed.state, failed.code) == ("failed", "source.invalid")


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "source.not_found"),
        ({"config.json": b"{}"}, "source.not_found"),
        ({"a.gguf": GGUF, "b.gguf": GGUF}, "source.ambiguous"),
        ({"config.json": b"{}", "model.safetensors": b"PK\x03\x04" + b"\x00" * 90}, "format.refused"),
    ],
    ids=["empty", "no weights", "two models", "zip"],
)
async def test_a_folder_that_is_no_model_leaves_nothing(tmp_path: Path, files: dict[str, bytes], code: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    async with node(tmp_path) as it:
        assert (await pulled(it, f"file:{folder}")).code == code
        assert it.files() == []


async def test_a_part_of_a_split_file_brings_the_others(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"big-0000{number}-of-00002.gguf").write_bytes(wheels.gguf_bytes(padding=number))
    async with node(tmp_path) as it:
        done = await pulled(it, f"file:{tmp_path}/big-00001-of-00002.gguf")
        assert len(done.version_files) == 2


# -- the store --------------------------------------------------------------------------------------------------------


async def test_a_stored_file_cannot_be_written_to_and_is_removed_only_without_links(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(GGUF)
    async with node(tmp_path) as it:
        stored = await it.pulls.ensure(FileOrder(source=f"file:{file}"))
        place = it.store.path_of(stored.sha256)
        assert place.stat().st_mode & 0o777 == 0o444
        link = tmp_path / "replica" / "model.gguf"
        link.parent.mkdir()
        link.hardlink_to(place)
        assert not await it.pulls.remove(stored.sha256)
        assert place.exists()
        link.unlink()
        assert await it.pulls.remove(stored.sha256)
        assert it.pulls.stored() == ()
        assert it.store.all() == ()
        assert await it.pulls.remove(stored.sha256)
        assert await it.pulls.remove("../../etc/passwd")


async def test_the_last_use_of_a_file_is_known(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(GGUF)
    async with node(tmp_path) as it:
        stored = await it.pulls.ensure(FileOrder(source=f"file:{file}"))
        os.utime(it.store.path_of(stored.sha256).with_name(f"{stored.sha256}.facts.json"), (1000, 1000))
        assert it.store.get(stored.sha256).used_unix_s == 1000
        assert (await it.pulls.ensure(FileOrder(source="", sha256=stored.sha256))).used_unix_s > 1_700_000_000


async def test_a_version_whose_file_was_removed_is_brought_again(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/demo.gguf", GGUF)
        async with node(tmp_path, source_hosts=site.url) as it:
            done = await pulled(it, f"https://127.0.0.1:{site.port}/demo.gguf#file={sha256(GGUF)}")
            await it.pulls.remove(done.sha256)
            again = await pulled(it, done.resolved_source, "pul_2")
            assert again.state == "done"
            assert it.store.get(done.sha256) is not None
