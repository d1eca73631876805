"""Remote OpenAI-compatible endpoints: see adapter.py and design.md."""
