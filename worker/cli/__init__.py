"""The command line `refunds`."""

from worker.cli.group import main

__all__ = ["main"]
