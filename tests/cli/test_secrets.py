"""`slice secret`: the value comes by standard input or a hidden prompt, and is shown nowhere."""

import pytest

from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

VALUE = "sk-very-secret"


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_is_read_from_standard_input_without_its_line_end(
    cluster: PlayedCluster, slice_: Slice, ending: str
) -> None:
    ended = slice_("secret", "set", "openai-key", stdin=VALUE + ending)
    assert (ended.code, cluster.secrets) == (0, {"openai-key": VALUE})
    assert VALUE not in ended.out + ended.err


def test_on_a_terminal_it_is_asked_for_and_not_echoed(cluster: PlayedCluster, slice_: Slice) -> None:
    terminal = slice_.on_terminal("secret", "set", "openai-key")
    terminal.until("value of openai-key")
    terminal.type(VALUE + "\n")
    assert VALUE not in terminal.until("stored openai-key")
    assert cluster.secrets == {"openai-key": VALUE}


def test_a_value_is_no_argument(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("secret", "set", "openai-key", VALUE, stdin="").code == 2
    assert slice_("secret", "set", "openai-key", stdin="").code == 2
    assert cluster.secrets == {}


def test_secrets_are_listed_and_deleted_by_name(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.secrets = {"openai-key": VALUE}
    ended = slice_("secret", "list")
    assert VALUE not in ended.out
    assert all(word in ended.out for word in ("NAME", "USED BY", "openai-key", "gpt", "yes"))
    assert slice_("secret", "rm", "openai-key").code == 0
    assert slice_("secret", "rm", "openai-key").code == 3


def test_a_deployment_says_where_it_runs_and_by_which_secret(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_(
        *("deploy", "smollm2", "--engine", "openai", "--set", "base_url=https://x.example"),
        *("--secret", "openai-key", "--node", "box", "--runtime", "external"),
    )
    sent = next(body for method, path, body in cluster.requests if method == "POST" and path.endswith("deployments"))
    assert (sent["secret"], sent["node"], sent["runtime"], "image" in sent) == ("openai-key", "box", "external", False)
    assert ended.code in (0, 3)
