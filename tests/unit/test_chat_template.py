"""The lint of chat templates: honest ones pass, ways out of the sandbox are refused, oddities are told."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.formats import chat_template
from tests.ggufs import CHAT_TEMPLATE

TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nYou may import data, call functions and open files with them.\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson(ensure_ascii=False) }}{%- endfor %}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, system_seen=false) %}
{%- macro render(values, required=[]) %}{% for key, value in values|dictsort %}{{ key }}{% endfor %}{% endmacro %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message['content'] is string and not '</think>' in message['content'] %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'].split('</think>')[-1].lstrip('\\n') }}
    {%- elif message.tool_calls %}{{ raise_exception("don't mix 'tool' and \\"text\\"") }}{%- endif %}
{%- endfor %}
{%- if date_string is not defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{{ '[' ~ bos_token ~ ']' }}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}"""


def refusal(text: str) -> str:
    with pytest.raises(Failure) as caught:
        chat_template.lint(text)
    assert caught.value.code == "format.template_refused"
    return caught.value.message


@pytest.mark.parametrize("text", [CHAT_TEMPLATE, TOOLS, "", "It's __bold__? No: it is 'fine'."[:4]], ids=range(4))
def test_an_honest_template_has_no_findings(text):
    assert chat_template.lint(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{{ ''.__class__.__mro__[1].__subclasses__() }}", id="class"),
        pytest.param("{{ cycler.__init__.__globals__.os.popen('id').read() }}", id="cycler"),
        pytest.param("{{ x['__class__'] }}", id="subscript"),
        pytest.param('{{ x [ "__odd_one" ] }}', id="subscript-space"),
        pytest.param("{{ x . __odd }}", id="attribute"),
        pytest.param("{{ x|attr('cla' ~ y) }}", id="attr"),
        pytest.param("{{ x |\n attr(y) }}", id="attr-line"),
        pytest.param("{{ xs|map('attr', y)|list }}", id="map-attr"),
        pytest.param("{{ xs|map('at' ~ 'tr', y)|list }}", id="map-attr-in-pieces"),
        pytest.param("{{ x['_' ~ '_class_' ~ '_'] }}", id="pieces"),
        pytest.param("{{ x['__cl' + \"ass__\"] }}", id="pieces-plus"),
        pytest.param("{{ x['__cl' 'ass__'] }}", id="pieces-side-by-side"),
        pytest.param(r"{{ x['\x5f\x5fclass\x5f\x5f'] }}", id="hex"),
        pytest.param(r"{{ x['\u005f_class__'] }}", id="unicode"),
        pytest.param(r"{{ x['\137\137class\137\137'] }}", id="octal"),
        pytest.param(r"{{ x['\N{LOW LINE}_globals__'] }}", id="name"),
        pytest.param("don't {{ x['_' ~ '_class_' ~ '_'] }} can't", id="among-apostrophes"),
        pytest.param("{# ' #}{{ x['_' ~ '_init_' ~ '_'] }}{# ' #}", id="among-comments"),
        pytest.param("{% raw %}{{ ' {% endraw %}{{ x|attr(y) }}{% raw %} ' }}{% endraw %}", id="raw"),
        pytest.param("{% import 'x' as y %}", id="import"),
        pytest.param("{%- include 'secrets' %}", id="include"),
        pytest.param("{%+ from 'x' import y %}", id="from"),
        pytest.param("{% extends 'x' %}", id="extends"),
        pytest.param("{{ '{0.x}'.format_map(y) }}", id="format-map"),
        pytest.param("{{ '{0.__class__}'.format(y) }}", id="format"),
        pytest.param("{{ f.gi_frame.f_back }}", id="frame"),
        pytest.param("{{ x.mro() }}", id="mro"),
        pytest.param("{{ a.popen('id') }}", id="popen"),
        pytest.param("x" * (chat_template.MAX_TEMPLATE_BYTES + 1), id="long"),
    ],
)
def test_a_way_out_of_the_sandbox_is_refused(text):
    assert refusal(text).startswith("the chat template is refused: it ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("see https://evil.example/x?a", "it names the address https://evil.example/x?a", id="address"),
        pytest.param("{{ open('/etc/passwd') }}", "it calls open(...)", id="open"),
        pytest.param("{{ socket }}", "it says socket", id="socket"),
        pytest.param("{{ lipsum() }}", "it uses Jinja's own objects", id="lipsum"),
        pytest.param("{{ '%c%c' % (95, 95) }}", "it makes letters from numbers", id="letters"),
        pytest.param("ok\u202eevil", "it holds invisible characters", id="bidi"),
        pytest.param(r"{{ '\x41' }}", "it writes characters by their numbers", id="numbers"),
        pytest.param("{{ x[a ~ b] }}", "it computes the names of what it looks up", id="computed"),
        pytest.param("{% for i in range(99999999) %}", "it counts far (99999999)", id="far"),
        pytest.param("{{ 9**9**9 }}", "it counts far (**)", id="power"),
        pytest.param("<__media__>", "it has double underscores", id="underscores"),
    ],
)
def test_an_oddity_is_told(text, words):
    assert any(words in finding for finding in chat_template.lint(text))


@given(st.text(alphabet="{}%#'\"\\_ |~+[].attrclassn\n", max_size=300))
def test_no_text_breaks_the_lint(text):
    try:
        chat_template.lint(text)
    except Failure as failure:
        assert failure.code == "format.template_refused"  # noqa: PT017


@pytest.mark.parametrize("piece", ["'", "\\'", "{{'\\", "\"'", "{{", "| ", "__", "[~", "x["])
def test_a_long_template_takes_no_long_time(piece):
    """Each pattern looks at a character a bounded number of times; a quadratic one would take minutes here."""
    text = piece * (chat_template.MAX_TEMPLATE_BYTES // len(piece))
    assert isinstance(chat_template.lint(text), tuple)


def test_the_default_template_is_the_one_that_is_kept_and_all_are_looked_at():
    found = chat_template.chosen({"tool_use": "{{ lipsum() }}", "default": "{{ messages }}"})
    assert found.text == "{{ messages }}"
    assert found.sha256 == hashlib.sha256(b"{{ messages }}").hexdigest()
    assert found.findings == ("template 'tool_use': it uses Jinja's own objects",)


def test_a_bad_template_beside_a_good_one_refuses_both():
    with pytest.raises(Failure, match="the chat template 'tool_use' is refused"):
        chat_template.chosen({"default": "ok", "tool_use": "{{ x|attr('y') }}"})


def test_a_model_without_templates_has_none():
    assert chat_template.chosen({}) == chat_template.ChatTemplate()


def test_too_many_templates_are_refused():
    with pytest.raises(Failure, match="33 chat templates"):
        chat_template.chosen({str(number): "" for number in range(33)})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, {}, id="none"),
        pytest.param("a", {"default": "a"}, id="text"),
        pytest.param([{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}],
                     {"default": "a", "rag": "b"}, id="list"),
        pytest.param({"default": "a"}, {"default": "a"}, id="object"),
        pytest.param([], {}, id="empty"),
    ],
)  # fmt: skip
def test_templates_are_found_in_each_shape(value, expected):
    assert chat_template.of_json(value) == expected


@pytest.mark.parametrize("value", [1, ["a"], [{"name": 1, "template": "a"}], [{"name": "a"}],
                                   [{"name": "a", "template": "b"}] * 2])  # fmt: skip
def test_templates_in_no_known_shape_are_refused(value):
    with pytest.raises(Failure) as caught:
        chat_template.of_json(value)
    assert caught.value.code == "format.template_refused"
