"""Engines as installed programs: environments and binaries, several versions side by side, and what others run."""

from node_agent.engines.house import EngineHouse
from node_agent.engines.places import Installed

__all__ = ["EngineHouse", "Installed"]
