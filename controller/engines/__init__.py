"""Engines on the nodes: what operators want installed or adopted where, and which version new deployments get."""
