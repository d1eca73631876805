"""How a replica's engine is brought to life: as a process, as a container, or not at all, because it runs elsewhere."""
