"""A stand-in for the program `text-generation-launcher`, 3.3: see `__main__`."""
