"""Ollama's own API behind ours: requests to it, its answers and streams turned into OpenAI's; pure."""
