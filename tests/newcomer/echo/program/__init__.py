"""The program of the echo engine; runs by path, outside our packages."""
