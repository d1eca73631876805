"""Long loops that break things at random: `make soak` runs them in full, their short forms are tests."""
