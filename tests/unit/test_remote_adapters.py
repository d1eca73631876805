"""What the adapters of remote endpoints say: where they are, what they refuse, that nothing is started."""

import pytest

from adapters.checking import checked_settings
from adapters.contract import Capability, External, ModelFacts, Runtime
from adapters.registry import adapter
from core.errors import Failure

NOTHING = ModelFacts(format="", size_bytes=0)
both = pytest.mark.parametrize("name", ["openai", "textgen_webui"])


@both
def test_a_remote_engine_is_external_eats_no_file_and_needs_nothing(name):
    one = adapter(name)
    assert isinstance(one, External)
    assert one.runtimes == {Runtime.EXTERNAL}
    assert one.formats == {""}
    assert one.footprint(NOTHING, {}).total_bytes == 0


@both
def test_its_settings_say_where_it_is(name):
    given = {"base_url": "https://api.example/x/v1", "remote_model": "gpt-4o", "probe_path": "/healthz"}
    found = adapter(name).remote(checked_settings(adapter(name), given))
    assert (found.base_url, found.model, found.probe_path) == ("https://api.example/x", "gpt-4o", "/healthz")
    assert not found.is_local
    assert adapter(name).remote({"base_url": "http://127.0.0.1:5000"}).is_local


@both
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"base_url": "ftp://x"},
        {"base_url": "https://x", "probe_path": "v1/models"},
        {"base_url": "https://x", "probe_path": "/a\r\nb: c"},
        {"base_url": "https://x", "endpoints": "chat,video"},
        {"base_url": "https://x", "endpoints": ","},
    ],
    ids=lambda value: str(sorted(value)),
)
def test_a_setting_that_leads_nowhere_is_refused_with_its_name(name, settings):
    with pytest.raises(Failure) as caught:
        adapter(name).remote(settings)
    assert caught.value.code == "engine.setting_invalid"
    assert caught.value.param in ("base_url", "probe_path", "endpoints")


@both
def test_only_the_endpoints_that_are_named_are_served(name):
    assert {one.value for one in adapter(name).endpoints({"endpoints": "chat, embeddings"})} == {"chat", "embeddings"}
    assert len(adapter(name).endpoints({})) == 3


def test_text_generation_webui_declares_what_it_would_ignore():
    dialect = adapter("textgen_webui").dialect
    assert dialect.renames == {"max_completion_tokens": "max_tokens"}
    assert {"n", "response_format", "functions", "chat_template_str", "instruction_template_str"} <= set(
        dialect.refused
    )
    assert Capability.JSON_SCHEMA not in adapter("textgen_webui").capabilities({})
    assert Capability.JSON_SCHEMA in adapter("openai").capabilities({})
