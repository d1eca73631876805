"""The programs of `examples/` do what they say, on a real cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ggufs import write_random_llama
from tests.system.cluster import Running

pytestmark = pytest.mark.system
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(running: Running, source: str) -> "subprocess.CompletedProcess[str]":
    block = running.block
    own = {
        "SLICE_ADMIN_URL": block.controller_url,
        "SLICE_OPERATOR_TOKEN": block.secret_file("operator_token").read_text().strip(),
        "SLICE_OPENAI_URL": block.openai_base_url,
        "SLICE_API_KEY": block.secret_file("api_key").read_text().strip(),
    }
    argv = [sys.executable, str(EXAMPLES / "serve_a_model.py"), source]
    return subprocess.run(argv, env={**os.environ, **own}, capture_output=True, text=True, timeout=120, check=False)


def test_a_model_is_brought_and_answers(running: Running, tmp_path: Path) -> None:
    model = write_random_llama(tmp_path / "random.gguf", seed=5, context=512)
    done = run(running, f"file:{model}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    running.slice("rm", "my-model", "--force")


def test_a_source_that_has_no_model_is_told_in_a_sentence(running: Running, tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("no model")
    done = run(running, f"file:{text}")
    assert done.returncode == 1
    assert "no GGUF" in done.stderr
    assert "Traceback" not in done.stderr
