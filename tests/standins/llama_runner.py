"""Runs llama.cpp's server from a JSON file under another name, as the engines that stand on it do.

Run by path in the environment that holds `xllamacpp`: `python -I llama_runner.py FILE`. Prints `ready` once the model
is loaded and the port is open, and ends by the signal that it gets. Uses the standard library and `xllamacpp` only.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import xllamacpp

_PR_SET_NAME = 15


def _parameters(wanted: dict) -> "xllamacpp.CommonParams":
    parameters = xllamacpp.CommonParams()
    parameters.model.path = wanted["model_path"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = wanted["port"]
    parameters.n_parallel = wanted["parallel"]
    parameters.n_ctx = wanted["context"] * wanted["parallel"]
    parameters.kv_unified = False
    parameters.n_batch = parameters.n_ubatch = wanted["batch"]
    parameters.ctx_shift = wanted["context_shift"]
    parameters.cache_ram_mib = 0
    parameters.n_threads_http = wanted["parallel"] + 16
    parameters.fit_params = False
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.ui = False
    if wanted["embedding"]:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return parameters


def main() -> None:
    wanted = json.loads(Path(sys.argv[1]).read_text())
    ctypes.CDLL(None).prctl(_PR_SET_NAME, wanted["name"].encode(), 0, 0, 0)
    server = xllamacpp.Server(_parameters(wanted))
    if not server.listening_address:
        os._exit(1)
    os.write(1, b"ready\n")
    signal.pause()


if __name__ == "__main__":
    main()
