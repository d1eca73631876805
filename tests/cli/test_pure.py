"""The decisions of the CLI, without a process: URLs, contexts, streams, tables, texts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import contexts, human
from cli.chat import Timings
from cli.client import failure_of as admin_failure
from cli.client import lines, patience
from cli.commands.deployments import parsed_settings
from cli.connection import Connection, callable_url, chosen_context, data_dir_of, door_url
from cli.contexts import Context, Contexts
from cli.invocation import Invocation
from cli.openai_door import events, failure_of, pieces
from cli.progress import LineStatus, StepBar
from cli.readiness import sentence
from cli.tables import Column, View, plain, table
from cli.terminal import Terminal, of_process
from cli.views import KEYS, MODELS, REPLICAS
from core.errors import CODES, Failure, Kind
from core.infra.clock import SystemClock
from gateway.openai.errors import TABLE as DOOR_TABLE
from tests.cli import things

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
FAR = Context(url="http://box:7081", token_file="/t")


def _connection(url: str, openai_url: str = "") -> Connection:
    return Connection(
        name="far", controller_url=url, token="t", openai_url=openai_url, key_file=None, unreachable_hint=""
    )


@pytest.mark.parametrize(
    "controller, reported, door",
    [
        ("http://127.0.0.1:7081", "http://127.0.0.1:7080/v1", "http://127.0.0.1:7080/v1"),
        ("http://127.0.0.1:7081", "http://0.0.0.0:7080/v1", "http://127.0.0.1:7080/v1"),
        ("http://box:7081", "http://0.0.0.0:7080/v1", "http://box:7080/v1"),
        ("http://box:7081", "http://127.0.0.1:7080/v1", "http://box:7080/v1"),
        ("http://box:7081", "https://models.example/v1", "https://models.example/v1"),
        ("http://[fd00::1]:7081", "http://127.0.0.1:7080/v1", "http://[fd00::1]:7080/v1"),
    ],
    ids=["local", "wildcard", "remote-wildcard", "remote-loopback", "named", "ipv6"],
)
def test_the_front_door_is_called_where_it_can_be_reached(controller: str, reported: str, door: str) -> None:
    assert door_url(_connection(controller), reported) == door
    assert door_url(_connection(controller, "http://mine/v1"), reported) == "http://mine/v1"


def test_nobody_is_called_at_a_wildcard_address() -> None:
    assert callable_url("http://0.0.0.0:7081") == "http://127.0.0.1:7081"
    assert callable_url("http://box:7081") == "http://box:7081"


@pytest.mark.parametrize(
    "flag_context, flag_dir, environment, current, chosen",
    [
        (None, None, {}, "local", "local"),
        (None, None, {}, "far", "far"),
        (None, None, {"SLICE_DATA_DIR": "/d"}, "far", "local"),
        (None, None, {"SLICE_DATA_DIR": "/d", "SLICE_CONTEXT": "env"}, "far", "env"),
        (None, "/d", {"SLICE_CONTEXT": "env"}, "far", "local"),
        ("flag", None, {"SLICE_CONTEXT": "env", "SLICE_DATA_DIR": "/d"}, "far", "flag"),
        ("local", "/d", {}, "far", "local"),
    ],
)
def test_the_nearest_word_chooses_the_cluster(
    flag_context: str | None, flag_dir: str | None, environment: dict[str, str], current: str, chosen: str
) -> None:
    invocation = Invocation(
        terminal=of_process({}),
        environment=environment,
        clock=SystemClock(),
        data_dir=Path(flag_dir) if flag_dir else None,
        context=flag_context,
    )
    assert chosen_context(invocation, current) == chosen


def test_the_data_directory_comes_from_flag_then_environment() -> None:
    assert data_dir_of(Path("/a"), {"SLICE_DATA_DIR": "/b"}) == Path("/a")
    assert data_dir_of(None, {"SLICE_DATA_DIR": "/b"}) == Path("/b")
    assert data_dir_of(None, {}).name == "slice"


def test_contexts_survive_a_save(tmp_path: Path) -> None:
    file = tmp_path / "config" / "contexts.json"
    made = Contexts().with_added("far", FAR).with_current("far")
    contexts.save(file, made)
    assert contexts.load(file) == made
    assert contexts.load(tmp_path / "none.json") == Contexts()


def test_a_context_in_use_that_is_forgotten_leaves_local() -> None:
    assert Contexts().with_added("far", FAR).with_current("far").without("far") == Contexts()


@pytest.mark.parametrize(
    "name, url, code",
    [
        ("local", "http://box", "request.invalid_name"),
        ("Bad Name", "http://box", "request.invalid_name"),
        ("far", "box:7081", "request.invalid_field"),
        ("far", "http://", "request.invalid_field"),
        ("far", "http://box:port", "request.invalid_field"),
    ],
)
def test_a_malformed_context_is_refused(name: str, url: str, code: str) -> None:
    with pytest.raises(Failure) as caught:
        Contexts().with_added(name, Context(url=url, token_file="/t"))
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["{", "[]", '{"current": "x"}', '{"current": "x", "contexts": {"a": {"b": 1}}}'])
def test_a_broken_contexts_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "contexts.json").write_text(text)
    with pytest.raises(Failure) as caught:
        contexts.load(tmp_path / "contexts.json")
    assert caught.value.code == "settings.unreadable"


@given(text=st.text(alphabet="aü\n€", max_size=40), cut=st.integers(1, 7))
def test_lines_do_not_depend_on_how_the_bytes_were_cut(text: str, cut: int) -> None:
    data = text.encode()
    blocks = [data[start : start + cut] for start in range(0, len(data), cut)]
    assert list(lines(iter(blocks))) == [line for line in text.removesuffix("\n").split("\n") if text]


def test_events_join_data_lines_and_skip_the_rest() -> None:
    stream = [": ping", "", "event: x", "data: a", "data:b", "", "", "id: 1", "data: c"]
    assert list(events(iter(stream))) == ["a\nb", "c"]


def test_pieces_end_at_done() -> None:
    chunk = 'data: {"choices": [{"delta": {"content": "x"}}]}'
    found = list(pieces(iter([chunk, "", "data: [DONE]", "", chunk, ""])))
    assert [piece.text for piece in found] == ["x"]


@pytest.mark.parametrize(
    "stream, code",
    [
        (['data: {"choices": []}', ""], "door.engine_failed"),
        (["data: oops", ""], "door.engine_failed"),
        (['data: {"error": {"message": "m", "code": "auth.key_revoked"}}', ""], "auth.key_revoked"),
        (['data: {"error": "plain"}', ""], "door.engine_failed"),
    ],
    ids=["no-done", "no-json", "our-code", "plain"],
)
def test_a_stream_that_is_no_whole_answer_fails(stream: list[str], code: str) -> None:
    with pytest.raises(Failure) as caught:
        list(pieces(iter(stream)))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "code, status, kind",
    [
        ("invalid_api_key", 401, Kind.DENIED),
        ("model_not_found", 404, Kind.NOT_FOUND),
        ("context_length_exceeded", 400, Kind.USAGE),
        (None, 503, Kind.UNAVAILABLE),
        (None, 418, Kind.FAILED),
        ("door.model_not_ready", 503, Kind.UNAVAILABLE),
    ],
)
def test_openai_errors_become_failures(code: str | None, status: int, kind: Kind) -> None:
    assert failure_of({"message": "m", "code": code}, status).kind is kind


@given(st.dictionaries(st.sampled_from(["code", "message", "hint", "param"]), st.sampled_from([None, "", "x", 7, []])))
def test_any_error_object_of_a_controller_becomes_a_failure(error: dict[str, object]) -> None:
    assert isinstance(admin_failure(error), Failure)


@given(st.text())
def test_harmless_text_brings_no_control_character(text: str) -> None:
    found = human.harmless(text)
    assert not any(ord(mark) < 32 or 127 <= ord(mark) < 160 for mark in found if mark not in "\n\t")
    assert human.harmless(found) == found


def test_texts_for_people() -> None:
    assert human.size(98362432) == "93.8 MiB"
    assert human.size(None) == human.size(0) == "-"
    assert human.age((NOW - timedelta(minutes=3)).isoformat(), NOW) == "3m00s"
    assert human.age(None, NOW) == human.age("yesterday", NOW) == "-"
    assert human.count_text(134515008) == "134.5M"


CELLS = st.lists(st.tuples(st.text(max_size=12), st.integers(0, 10**9)), max_size=6)


@given(CELLS)
def test_a_plain_table_has_a_line_per_item_and_aligned_columns(cells: list[tuple[str, int]]) -> None:
    view = View(
        name=lambda item: str(item["text"]),
        empty="",
        columns=(
            Column(title="TEXT", cell=lambda item, _: str(item["text"])),
            Column(title="NUMBER", cell=lambda item, _: str(item["number"]), is_number=True),
        ),
    )
    items = [{"text": text, "number": number} for text, number in cells]
    shown = plain(table(view, items, NOW, is_wide=False)).split("\n")
    assert len(shown) == len(items) + 1
    assert len({len(line) for line in shown}) == 1


@given(
    st.dictionaries(
        st.sampled_from(["state", "devices", "log_tail", "message", "memory_bytes", "state_since", "retry_in_s"]),
        st.none() | st.just("") | st.just(0) | st.just([]),
    )
)
def test_a_replica_with_fields_left_out_is_still_a_row(item: dict[str, object]) -> None:
    assert len(table(REPLICAS, [item], NOW, is_wide=True).rows) == 1


@pytest.mark.parametrize(
    "key, state",
    [
        (things.key(), "active"),
        (things.key(expires_at="2026-10-01T00:00:00+00:00"), "expired"),
        (things.key(expires_at="2027-10-01T00:00:00+00:00"), "active"),
        (things.key(revoked_at="2026-10-01T00:00:00+00:00"), "revoked"),
    ],
    ids=["plain", "past", "future", "revoked"],
)
def test_a_key_says_whether_it_works(key: dict[str, object], state: str) -> None:
    assert state in table(KEYS, [key], NOW, is_wide=False).rows[0]


def test_a_setting_is_json_where_it_can_be_and_text_elsewhere() -> None:
    found = parsed_settings(["a=1", "b=1.5", "c=true", "d=null", "e=word", "f=NaN", 'g="5"', "a=2"])
    assert found == {"a": 2, "b": 1.5, "c": True, "d": None, "e": "word", "f": "NaN", "g": "5"}


def test_timings_count_tokens_from_the_first_on() -> None:
    text = Timings(first_s=0.5, total_s=2.5, prompt_tokens=9, answer_tokens=21).sentence()
    assert text == "first token 500 ms, total 2.50 s, prompt 9 tokens, answer 21 tokens, 10.0 tokens/s"


def test_a_deployment_without_a_reason_says_its_state() -> None:
    assert sentence(things.starting("")) == "smollm2 is starting"
    assert sentence(things.starting("box fetches")) == "smollm2: box fetches"


def test_every_error_of_the_front_door_keeps_its_kind() -> None:
    unseen = {"request.method_not_allowed", "request.body_timeout"}  # a chat request of ours never meets them
    for code, (status, _, openai_code) in DOOR_TABLE.items():
        if code not in unseen:
            assert failure_of({"message": "m", "code": openai_code}, status).kind is CODES[code][0], code
    assert failure_of({"message": "m", "code": "key_revoked"}, 401).code == "auth.key_revoked"
    assert failure_of({"message": "m", "code": "engine_busy"}, 503).code == "door.engine_busy"


class _Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_sentence_whose_numbers_alone_change_is_one_line() -> None:
    notes = _Notes()
    status = LineStatus(cast(Terminal, notes))
    for text in ("box silent for 9s", "box silent for 10s", "box silent for 1m00s", "box is back", "box silent for 2s"):
        status.say(text)
    assert notes.lines == ["box silent for 9s", "box is back", "box silent for 2s"]


def test_the_steps_of_a_pull_are_lines_though_numbers_alone_change() -> None:
    notes = _Notes()
    bar = StepBar(cast(Terminal, notes))
    for done in (0, 5, 10, 100):
        bar.show({"model": "m", "state": "running", "bytes_done": done, "bytes_total": 100})
    assert notes.lines == [f"pulling m: {share} % of 100 B" for share in (0, 10, 100)]


def test_a_read_is_given_up_sooner_than_a_write_and_a_follower_never() -> None:
    assert (patience("GET", is_followed=False), patience("POST", is_followed=False)) == (15.0, 60.0)
    assert patience("GET", is_followed=True) is None


@pytest.mark.parametrize(
    ("digest", "shown"), [("sha256:" + "0123456789abcdef" * 4, "0123456789ab"), ("builtin:fake", "builtin"), ("", "-")]
)
def test_the_id_of_a_model_is_the_head_of_its_digest_or_builtin(digest: str, shown: str) -> None:
    found = table(MODELS, [{"name": "m", "versions": [{"number": 1, "digest": digest}]}], NOW, is_wide=False)
    assert shown in plain(found).splitlines()[1].split()[1]
