"""Ollama's API in front of any engine: its requests become OpenAI's for the relay, OpenAI's answers become its own."""
