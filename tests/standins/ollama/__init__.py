"""A stand-in for the program `ollama`, 0.33: see `__main__`."""
