"""A plugin for pytest: Hypothesis gives the same examples each time and stops at its first
failure.
"""

from ops.lab.mutants.hot import repeatable

repeatable()
