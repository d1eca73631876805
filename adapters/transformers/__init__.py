"""transformers, behind a small server of ours: serves safetensors models one request at a time."""
