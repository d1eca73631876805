"""Engines in containers: what the node can run, the command lines, the keeper under the shim, and what is left over."""
