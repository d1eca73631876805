"""The fake engine: a real HTTP server that answers nonsense and misbehaves when told to."""
