"""Programs run by path in the engine's own environment; nothing imports them."""
