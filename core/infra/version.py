"""The release, in one place for code; `tests/unit` checks that pyproject.toml says the same."""

VERSION = "0.1.0"
