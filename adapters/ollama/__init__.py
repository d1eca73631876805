"""Ollama, started by Slice or adopted where somebody else runs it."""
