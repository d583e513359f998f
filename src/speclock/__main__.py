"""`python -m speclock`."""

from speclock.cli import entry_point

entry_point()
