"""The engines that the contract suite runs, one line each: which model, which settings, what it takes here.

A new engine is one entry of `CONTESTANTS`. `missing` says why an engine cannot be had on this machine, "" when it can.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.contract import JsonValue
from adapters.registry import adapter
from tests import standins
from tests.engine_models import engine_python, is_installed, tiny_safetensors
from tests.ggufs import write_random_llama, write_scripted_llama

SEED = 7
STAND_INS = ("ollama", "text-generation-launcher")
"""Programs that are in no package index; `tests.standins` has others in their place, with llama.cpp underneath."""
LIGHT_CALL = ("<tool_call>\n", '{"name": "set_light", "arguments": {"on": true}}', "\n</tool_call>")
TOOL_TEMPLATE = (
    "{%- if tools %}{{ 'system: tools\n' }}{%- for tool in tools %}{{ tool | tojson }}{{ '\n' }}{%- endfor %}"
    '{{ \'Answer a call as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>\n\' }}{%- endif %}'
    "{%- for message in messages %}{%- if message.role == 'assistant' and message.tool_calls %}{{ 'assistant: ' }}"
    "{%- if message.content %}{{ message.content }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}"
    "{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}"
    '{{ \'<tool_call>\n{"name": "\' + tool_call.name + \'", "arguments": \' }}{{ tool_call.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{%- endfor %}{{ '\n' }}"
    "{%- elif message.role == 'tool' %}{{ 'user: <tool_response>\n' + message.content + '\n</tool_response>\n' }}"
    "{%- else %}{{ message.role + ': ' + (message.content or '') + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant: ' }}{%- endif %}"
)
"""The form of calls that Hermes and Qwen models use."""

Model = Callable[[Path], Path]
"""Takes a directory for what it writes and returns a file or a folder."""


def random_gguf(directory: Path) -> Path:
    """Return a small random model that llama.cpp eats, written on the first call; large enough to take its time."""
    path = directory / "random.gguf"
    if not path.exists():
        write_random_llama(path, seed=SEED, layers=4, embedding=256, context=8192, template=TOOL_TEMPLATE)
    return path


def calling_gguf(directory: Path) -> Path:
    """Return a GGUF model that answers everything with a call of `set_light`."""
    path = directory / "calling.gguf"
    if not path.exists():
        write_scripted_llama(path, says=LIGHT_CALL, chat_template=TOOL_TEMPLATE, context=2048)
    return path


def tiny_folder(_: Path) -> Path:
    """Return a tiny random model in safetensors."""
    return tiny_safetensors()


def nothing_missing() -> str:
    """Return that it can be had anywhere."""
    return ""


def not_installed(engine: str) -> Callable[[], str]:
    """Return a check that an engine too large to install in passing is there, and the models made with it."""
    return lambda: "" if all(map(is_installed, (adapter(engine), adapter("transformers")))) else "run `make engines`"


def stand_ins(directory: Path, *, gguf_twin: Path) -> tuple[Path, ...]:
    """Return what to put before PATH: a directory with stand-ins for the programs that this machine lacks."""
    if all(shutil.which(name) for name in STAND_INS):
        return ()
    standins.install(directory, engine_python=engine_python(adapter("llamacpp")), gguf_twin=gguf_twin)
    for name in STAND_INS:
        if shutil.which(name):
            (directory / name).unlink()  # the real one is to be tried
    return (directory,)


def _label(engine: str, program: str) -> str:
    return engine if shutil.which(program) else f"{engine} stand-in"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One engine in the suite.

    `label` is its column. `settings` bound its context to `context` tokens. `calling_model` is a model that calls the
    tool `set_light` whatever it is asked; without one, engines that declare tools are asked to call it by name.
    `asks_key` is false for engines that know no API keys, `hides_name` for those that tell strangers which model they
    serve. `takes_key_from_environment` is true for engines that read their key nowhere else. `says_when_idle` is true
    where the engine's own count of running requests is the better witness than its CPU time. `is_our_program` means
    that what is started is a file of `adapters/NAME/program/`. `slow_start` are settings that make a start last. A skip
    of one that `must_run` fails `make engines-test`; one that `is_slow` runs only there.
    """

    label: str
    engine: str
    context: int
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    model: Model | None = None
    calling_model: Model | None = None
    missing: Callable[[], str] = nothing_missing
    asks_key: bool = True
    hides_name: bool = True
    takes_key_from_environment: bool = False
    says_when_idle: bool = False
    is_our_program: bool = False
    slow_start: Mapping[str, JsonValue] = field(default_factory=dict)
    must_run: bool = False
    is_slow: bool = False

    @property
    def name(self) -> str:
        """What its replica is called: the label, fit for a node agent."""
        return self.label.replace(" ", "-")


CONTESTANTS = (
    Contestant(
        label="fake",
        engine="fake",
        context=1024,
        settings={"context": 1024, "token_delay_ms": 4.0, "fork_tree": 1},  # an answer that is cut must be going on
        says_when_idle=True,
        is_our_program=True,
        slow_start={"start_delay_s": 1.0, "fork_tree": 2},
    ),
    Contestant(
        label="llamacpp",
        engine="llamacpp",
        context=4096,
        settings={"context": 4096},
        model=random_gguf,
        calling_model=calling_gguf,
        is_our_program=True,
        must_run=True,
    ),
    Contestant(
        label="vllm",
        engine="vllm",
        context=1024,
        settings={"context": 1024, "kv_cache_mib": 16, "slots": 4},
        model=tiny_folder,
        missing=not_installed("vllm"),
        is_our_program=True,
        must_run=True,
        # Its processes spin for a second after the last step, whether that was cut or not.
        says_when_idle=True,
        is_slow=True,  # each of its starts takes half a minute, and the suite kills it often
    ),
    Contestant(
        label="transformers",
        engine="transformers",
        context=1024,
        settings={"context": 1024, "slots": 2},
        model=tiny_folder,
        missing=not_installed("transformers"),
        is_our_program=True,
    ),
    Contestant(
        label=_label("ollama", "ollama"),
        engine="ollama",
        context=8192,  # with less, an answer that outgrows it goes on with a part forgotten (adapters/ollama/design.md)
        settings={"context": 8192, "slots": 2},
        model=random_gguf,
        calling_model=calling_gguf,
        asks_key=False,
    ),
    Contestant(
        label=_label("tgi", "text-generation-launcher"),
        engine="tgi",
        context=4096,
        settings={"context": 4096, "slots": 2},
        model=tiny_folder,
        hides_name=False,
        takes_key_from_environment=True,
    ),
)
