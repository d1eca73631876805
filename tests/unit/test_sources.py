"""Sources as people type them, and what is made of them when everything is pinned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.ids import Sha256
from core.sources import SourceKind, hf_text, ollama_text, parse_source, pinned_text

SHA = Sha256("a" * 64)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "host", "repository", "revision", "path"),
    [
        ("hf:org/name", "", "org/name", "", ""),
        ("hf:org/name@main:Q4_K_M", "", "org/name", "main", "Q4_K_M"),
        (f"hf:org/name@{COMMIT}:a/b.gguf", "", "org/name", COMMIT, "a/b.gguf"),
        ("ollama:smollm2", "", "smollm2", "", ""),
        ("ollama:smollm2:135m", "", "smollm2", "135m", ""),
        ("ollama:user/name:tag", "", "user/name", "tag", ""),
        ("ollama:reg.example:5000/user/name:tag", "reg.example:5000", "user/name", "tag", ""),
        (f"ollama:user/name:tag@sha256:{SHA}", "", "user/name", "tag", ""),
        ("https://models.example/a/b.gguf?x=1", "models.example", "", "", "a/b.gguf?x=1"),
        ("file:/srv/models/a", "", "", "", "/srv/models/a"),
    ],
)
def test_a_source_is_taken_apart(text: str, host: str, repository: str, revision: str, path: str) -> None:
    source = parse_source(text)
    assert (source.host, source.repository, source.revision, source.path) == (host, repository, revision, path)


@pytest.mark.parametrize(
    ("text", "is_pinned"),
    [
        ("hf:org/name@main", False),
        (f"hf:org/name@{COMMIT}", True),
        (f"hf:org/name@main:a.gguf#file={SHA}", True),
        ("ollama:smollm2:135m", False),
        (f"ollama:smollm2@sha256:{SHA}", True),
        (f"ollama:smollm2:135m#manifest={SHA}", True),
        ("https://models.example/a.gguf", False),
        (f"https://models.example/a.gguf#file={SHA}", True),
        ("file:/srv/a.gguf", False),
        ("pypi:demo==1.0/a.gguf", True),
    ],
)
def test_only_what_names_the_same_bytes_for_ever_is_pinned(text: str, is_pinned: bool) -> None:
    assert parse_source(text).is_pinned == is_pinned


@pytest.mark.parametrize(
    "text",
    [
        "hf:name",
        "hf:../etc/passwd",
        "hf:org/name:../../x.gguf",
        "https://",
        "https://host",
        "https://user:secret@host/a.gguf",
        "https://[::1]/a.gguf",
        "file:relative",
        "file:/a/../b",
        f"ollama:name@sha256:{'A' * 64}",
        f"ollama:name@sha256:{SHA}#file={'b' * 64}",
        f"ollama:name@sha256:{SHA}#manifest={'b' * 64}",
        f"ollama:name#manifest={SHA},file={'b' * 64}",
        f"ollama:name#wheel={SHA}",
        f"hf:org/name#manifest={SHA}",
        "https://host/a.gguf#file=abc",
        "https://host/a b.gguf",
    ],
)
def test_what_is_malformed_is_refused(text: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_source(text)
    assert caught.value.code == "source.invalid"


def test_plain_http_is_refused_with_what_to_write() -> None:
    with pytest.raises(Failure, match="use https") as caught:
        parse_source("http://models.example/a.gguf")
    assert caught.value.code == "source.unsupported"


def test_a_blob_of_a_registry_is_named_by_its_digest_alone() -> None:
    text = ollama_text(parse_source("ollama:reg.example/user/name:tag"), SHA)
    blob = parse_source(text)
    assert (blob.host, blob.repository, blob.revision) == ("reg.example", "user/name", "tag")
    assert blob.file_sha256 == SHA
    assert ollama_text(blob, SHA) == text


def test_a_file_of_a_commit_is_pinned_with_its_digest() -> None:
    text = pinned_text(hf_text("org/name", COMMIT, "sub/config.json"), SHA)
    source = parse_source(text)
    assert (source.kind, source.is_commit, source.path, source.file_sha256) == (
        SourceKind.HF,
        True,
        "sub/config.json",
        SHA,
    )
    assert pinned_text(text, SHA) == text


def test_a_wheels_digest_stays_when_its_file_is_pinned() -> None:
    assert pinned_text(f"pypi:demo==1.0/a.gguf#wheel={SHA}", Sha256("b" * 64)) == (
        f"pypi:demo==1.0/a.gguf#wheel={SHA},file={'b' * 64}"
    )


@given(st.text(max_size=120))
def test_any_text_is_a_source_or_a_failure(text: str) -> None:
    for scheme in ("", *(f"{kind}:" for kind in SourceKind)):
        try:
            source = parse_source(scheme + text)
        except Failure:
            continue
        assert ".." not in source.path.split("/")
        assert source.text == scheme + text
