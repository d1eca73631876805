"""Tests of the slice command: a real subprocess against a real HTTP server that plays the cluster."""
