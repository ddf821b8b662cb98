"""Run by `python -m ops.servers`."""

from ops.servers.command import main

main()
