"""Devices of this machine: the CPU, NVIDIA GPUs by NVML, or pretended ones. Only this package reads NVML."""
