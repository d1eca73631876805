"""Hypothesis without a deadline per example: the machine that runs the tests may be busy."""

from hypothesis import settings

settings.register_profile("slice", deadline=None)
settings.load_profile("slice")
