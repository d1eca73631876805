"""The release is said once for code and once for packaging; both must agree."""

import tomllib
from pathlib import Path

from core.infra.version import VERSION


def test_the_code_and_the_package_say_the_same_release() -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(file.read_text())["project"]["version"] == VERSION
