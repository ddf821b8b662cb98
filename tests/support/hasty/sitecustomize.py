"""Python runs this at its start if this folder is on PYTHONPATH: worker and server are in haste.

A worker walks, beats and probes every few seconds, and puts off for seconds what it cannot do now.
A server that is told to end serves a while longer. A test of real processes would only wait for
that. All else is as it is.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

NOT_LOADED: Final = "flower"
"""Celery's command line loads the commands of every package that has some.

A worker of an installation without Flower loads none of its, and so does a worker of the tests: it
is a fifth of the processor's time of a start.
"""

PACES: Final[dict[str, dict[str, float | timedelta]]] = {
    "worker.process.runtime": {
        "SWEEP_SECONDS": 0.25,
        "BEAT_SECONDS": 0.25,
        "PROBE_SECONDS": 0.5,
        "DISK_SECONDS": 0.25,
        "ERASE_SECONDS": 0.5,
        "CALLBACK_SECONDS": 0.25,
        "AGAIN_SECONDS": 0.25,
    },
    "worker.broker.consumer": {"KEEP_AGAIN_SECONDS": 0.25},
    "worker.callbacks.delivery": {"END_SECONDS": 0.5},
    "worker.http.app": {"GRACE_SECONDS": 0.25},
    "worker.rules.attempts": {"PARKED": timedelta(seconds=0.5)},
    "worker.rules.preflight": {"_FIRST_WAIT": timedelta(seconds=0.5)},
    "worker.store.callbacks": {
        "HOLD": timedelta(seconds=2),
        "FIRST_PROBE": timedelta(seconds=1),
    },
    "worker.store.sweeps": {"LOST_NUDGE": timedelta(seconds=3)},
}
"""By module the times of its own that are replaced once it is loaded."""


class Hasty(MetaPathFinder):
    """Finds modules as usual, and changes the times of these once they are loaded."""

    def find_spec(self, fullname: str, path: Any, target: object = None) -> ModuleSpec | None:
        """Return how the module is loaded, None for all others."""
        del target
        if fullname == NOT_LOADED:
            raise ModuleNotFoundError(f"{fullname} is not for a worker of the tests")
        paces = PACES.get(fullname)
        spec = None if paces is None else PathFinder.find_spec(fullname, path)
        if paces is not None and spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def hastened(module: ModuleType) -> None:
                load(module)
                if unknown := paces.keys() - vars(module).keys():
                    raise AttributeError(f"{fullname} has no {', '.join(sorted(unknown))}")
                vars(module).update(paces)

            vars(spec.loader)["exec_module"] = hastened
        return spec


sys.meta_path.insert(0, Hasty())
