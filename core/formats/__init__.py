"""Bounded readers of model files' headers: they look, they never load."""
