"""Tools for trying out and testing the refund worker.

A simulated provider, a throw-away Redis server, the demo.

Nothing outside this package depends on it but the command line.
"""
