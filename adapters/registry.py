"""The engines that Slice knows: one line each.

In: a name people typed. Out: the adapter. Called by the controller, the node agent, the front door and the CLI. A new
engine is one folder beside this file and one line in `adapters`.
"""

from adapters.contract import Adapter
from adapters.fake.adapter import Fake
from adapters.llamacpp.adapter import LlamaCpp
from adapters.llamacpp.server import LlamaServer
from adapters.ollama.adapter import Ollama
from adapters.openai.adapter import OpenAiRemote, TextgenWebui
from adapters.tgi.adapter import Tgi
from adapters.transformers.adapter import Transformers
from adapters.vllm.adapter import Vllm
from core.errors import Failure
from core.names import did_you_mean


def adapters() -> tuple[Adapter, ...]:
    """Return every adapter; the first that eats a model's format is the one a deployment gets unless it names one."""
    return (LlamaCpp(), LlamaServer(), Vllm(), Transformers(), Ollama(), Tgi(), Fake(), OpenAiRemote(), TextgenWebui())


def adapter(name: str) -> Adapter:
    """Return the adapter called `name`.

    Raises:
        Failure: `engine.unknown`, with the closest name.
    """
    known = {one.name: one for one in adapters()}
    if name not in known:
        raise Failure(
            "engine.unknown",
            f"there is no engine {name[:80]!r}.{did_you_mean(name, known)}",
            hint=f"known engines: {', '.join(sorted(known))}",
            param="engine",
        )
    return known[name]
