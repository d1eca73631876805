"""Servers on loopback that stand in for what the tests cannot reach, with faults that can be switched on."""
