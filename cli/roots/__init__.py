"""Composition roots: one module per process, each run as `python -m cli.roots.NAME`; only they wire parts."""
