"""Run by `python -m ops.lab.servers`."""

from ops.lab.servers.command import main

main()
