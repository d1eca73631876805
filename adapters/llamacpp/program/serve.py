"""Starts llama.cpp's server in this process from a JSON file, and ends on SIGTERM.

Run by path in the engine's environment: `python -I serve.py FILE`. Uses the standard library and `xllamacpp` only.
Exits 0 after SIGTERM (while loading it ends by the signal itself), 2 when the file is unusable, 3 when the model cannot
be loaded, 4 when the port is not ours; the reason stands in the last line on stderr.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import xllamacpp

_CHECKPOINTS = 3  # copies of sliding-window state a slot; the library's 32 would be memory nobody foresaw
_SPARE_HTTP_THREADS = 32  # a kept-alive connection holds one; too few of them and probes wait behind idle doors


def _parameters(wanted: dict) -> "xllamacpp.CommonParams":
    parameters = xllamacpp.CommonParams()
    parameters.model.path = wanted["model_path"]
    parameters.model_alias = {wanted["served_name"]}
    if hasattr(parameters, "hostnames"):
        parameters.hostnames = [wanted["host"]]
    else:  # until 2026.9
        parameters.hostname = wanted["host"]
    parameters.port = wanted["port"]
    parameters.api_keys = [wanted["api_key"]] if wanted["api_key"] else []
    parameters.n_parallel = wanted["slots"]
    parameters.n_ctx = wanted["context"] * wanted["slots"]  # llama.cpp counts all slots together
    parameters.kv_unified = False  # each slot owns its context, so that neighbours cannot starve it
    parameters.n_batch = parameters.n_ubatch = wanted["batch"]
    parameters.n_gpu_layers = wanted["gpu_layers"]
    parameters.cache_ram_mib = wanted["cache_ram_mib"]
    parameters.cache_idle_slots = False
    parameters.n_ctx_checkpoints = _CHECKPOINTS
    parameters.n_threads_http = wanted["slots"] + _SPARE_HTTP_THREADS
    if wanted["threads"] > 0:
        parameters.cpuparams.n_threads = wanted["threads"]
        parameters.cpuparams_batch.n_threads = wanted["threads"]
    if wanted["embeddings"]:
        parameters.embedding = True
        # Without a pooling type the OpenAI endpoint refuses to answer for a chat model.
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # Read, not mapped: mapped weights count as free memory in the kernel's books, and placement would promise them.
    parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.fit_params = False  # would shorten the context without a word
    parameters.ctx_shift = False  # a prompt that does not fit is an error, never cut
    parameters.use_jinja = True
    parameters.warmup = True
    parameters.ui = False
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = False  # it shows other people's prompts
    parameters.endpoint_props = False
    return parameters


def _fail(code: int, reason: str) -> None:
    sys.stdout.flush()
    print(f"slice: {reason}", file=sys.stderr, flush=True)
    os._exit(code)


def _port_fault(host: str, port: int) -> str:
    """Return why the port cannot be had; llama.cpp itself would find out after loading and not say which it was."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _end_signals() -> int:
    """Return a descriptor that becomes readable on SIGTERM and SIGINT, whichever thread the kernel gives them to.

    Until this call both have their default action: loading holds the interpreter's lock for as long as it takes, so a
    handler in Python would answer only afterwards.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return readable


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        wanted = json.loads(Path(sys.argv[1]).read_text())
        parameters = _parameters(wanted)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        _fail(2, f"the configuration is unusable: {error!r}")
    if fault := _port_fault(wanted["host"], wanted["port"]):
        _fail(4, f"cannot listen on {wanted['host']}:{wanted['port']}: {fault}")
    try:
        server = xllamacpp.Server(parameters)
    except Exception as error:
        _fail(3, f"llama.cpp did not load {wanted['model_path']}; the lines above say why ({error})")
    expected = f"http://{wanted['host']}:{wanted['port']}"
    if server.listening_address != expected:
        _fail(4, f"llama.cpp listens on {server.listening_address or 'nothing'} instead of {expected}")
    asked_to_end = _end_signals()
    print(f"slice: serving {wanted['served_name']} on {expected}", flush=True)
    os.read(asked_to_end, 1)
    os._exit(0)  # nothing here is worth a slow goodbye: streams were drained before


if __name__ == "__main__":
    main()
