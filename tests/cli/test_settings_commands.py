"""`slice config`, `slice doctor` and the flags of `slice up`."""

import json

import pytest

from cli.cluster.finding import Finding
from cli.commands.config import line_of
from cli.commands.doctor import faults
from cli.main import hoisted
from cli.options import Output, wanted_output
from tests.cli.conftest import Slice


def test_config_show_says_where_a_value_comes_from(slice_: Slice) -> None:
    (slice_.data_dir / "slice.toml").write_text("heartbeat_s = 5\n")
    ended = slice_("config", "show", "-o", "json", SLICE_DEVICES="cpu")
    found = {item["key"]: item for item in json.loads(ended.out)["items"]}
    assert (found["heartbeat_s"]["value"], found["heartbeat_s"]["origin"]) == (5.0, "file")
    assert (found["devices"]["value"], found["devices"]["origin"]) == ("cpu", "environment")
    assert found["port"] == {
        "key": "port",
        "value": 7080,
        "origin": "default",
        "unit": "TCP port",
        "default": 7080,
        "meaning": "Port of the front door (OpenAI API).",
        "why": "Free of the ports that Ollama (11434), vLLM (8000) and llama.cpp (8080) take.",
    }


def test_config_show_hides_a_password(slice_: Slice) -> None:
    out = slice_("config", "show", SLICE_DATABASE_URL="postgresql://me:secret@db/slice").out
    assert "secret" not in out
    assert "postgresql://me:***@db/slice" in out


def test_config_check_lists_every_fault_with_its_line(slice_: Slice) -> None:
    file = slice_.home / "mine.toml"
    file.write_text('port = 7080\nheartbeat = 3\nhost = "x"\ncontroller_port = 70000\n')
    ended = slice_("config", "check", str(file))
    assert (ended.code, ended.out) == (2, "")
    assert f"{file}:2: error[settings.unknown_key]: unknown key 'heartbeat'" in ended.err
    assert "hint: did you mean 'heartbeat_s'?" in ended.err
    assert f"{file}:4: error[settings.invalid]: controller_port = 70000 is outside 1 to 65535" in ended.err


def test_config_check_lists_faults_as_json(slice_: Slice) -> None:
    file = slice_.home / "mine.toml"
    file.write_text("\nprot = 1\n")
    ended = slice_("config", "check", str(file), "-o", "json")
    assert ended.code == 2
    (fault,) = json.loads(ended.out)["items"]
    assert (fault["code"], fault["param"], fault["line"]) == ("settings.unknown_key", "prot", 2)


@pytest.mark.parametrize(
    "text, code, shown",
    [("port = 1\n", 0, "is fine"), ("port = = 1\n", 2, "is not valid TOML")],
    ids=["fine", "no-toml"],
)
def test_config_check_of_a_whole_file(slice_: Slice, text: str, code: int, shown: str) -> None:
    file = slice_.home / "mine.toml"
    file.write_text(text)
    ended = slice_("config", "check", str(file))
    assert ended.code == code
    assert shown in ended.err


def test_config_check_of_a_missing_file_is_a_usage_error(slice_: Slice) -> None:
    assert slice_("config", "check", "/nowhere.toml").code == 2
    assert slice_("config", "check").code == 0


def test_doctor_looks_at_this_machine(slice_: Slice) -> None:
    ended = slice_("doctor", "-o", "json")
    items = json.loads(ended.out)["items"]
    assert {"name", "is_ok", "detail", "hint"} == set(items[0])
    assert ended.code == (1 if any(item["is_ok"] is False for item in items) else 0)


def test_only_what_is_wrong_makes_doctor_fail() -> None:
    states = {"fine": True, "note": None, "wrong": False}
    found = [Finding(name=name, is_ok=is_ok, detail="") for name, is_ok in states.items()]
    assert faults(found) == ["wrong"]


def test_a_remote_cluster_is_not_examined_from_here(slice_: Slice) -> None:
    slice_.argv = lambda *words: [*Slice.argv(slice_, *words)[:3], *words]  # type: ignore[method-assign]
    ended = slice_("--context", "far", "doctor")
    assert ended.code == 2
    assert "another machine's cluster" in ended.err


@pytest.mark.parametrize(
    "words, moved",
    [
        (["up", "--data-dir", "/d"], ["--data-dir", "/d", "up"]),
        (["up", "--data-dir=/d", "--port", "1"], ["--data-dir=/d", "up", "--port", "1"]),
        (["ps", "--context", "x", "-o", "json"], ["--context", "x", "ps", "-o", "json"]),
        (["run", "m", "--", "--context", "x"], ["run", "m", "--", "--context", "x"]),
        (["up", "--data-dir"], ["--data-dir", "up"]),
    ],
    ids=["after", "equals", "context", "double-dash", "without-value"],
)
def test_the_cluster_may_be_named_after_the_command(words: list[str], moved: list[str]) -> None:
    assert hoisted(words) == moved


@pytest.mark.parametrize(
    "words, output",
    [
        (["ps"], Output.TABLE),
        (["ps", "-o", "json"], Output.JSON),
        (["ps", "-ojson"], Output.JSON),
        (["ps", "--output=yaml"], Output.YAML),
        (["ps", "-o", "xml"], Output.TABLE),
        (["run", "m", "--", "-o", "json"], Output.TABLE),
    ],
    ids=" ".join,
)
def test_the_format_is_known_before_the_line_is_parsed(words: list[str], output: Output) -> None:
    assert wanted_output(words) is output


def test_a_key_is_found_on_its_line() -> None:
    text = "# port = 1\n\n  port= 2\n[table]\n"
    assert (line_of(text, "port"), line_of(text, "table"), line_of(text, "absent")) == (3, 4, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLICE_HF_ENDPOINT", "huggingface.co"),
        ("SLICE_HF_ENDPOINT", "https://user:word@hub.lan"),
        ("SLICE_OLLAMA_REGISTRY", "ftp://registry.lan"),
        ("SLICE_SOURCE_HOSTS", "hub.lan, not a host"),
    ],
)
def test_a_place_of_models_that_is_no_place_is_refused_before_anything_begins(
    slice_: Slice, name: str, value: str
) -> None:
    ended = slice_("config", "show", **{name: value})
    assert ended.code == 2
    assert f"error[settings.invalid]: {name.removeprefix('SLICE_').lower()}: " in ended.err


def test_mirrors_and_trusted_hosts_are_taken(slice_: Slice) -> None:
    given = {"SLICE_HF_ENDPOINT": "http://127.0.0.1:8081/hf", "SLICE_SOURCE_HOSTS": "hub.lan:8443, http://10.0.0.5:80"}
    assert slice_("config", "show", **given).code == 0
