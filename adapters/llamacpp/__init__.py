"""llama.cpp, through the PyPI package `xllamacpp`: serves GGUF models on the CPU."""
