"""The HTTP server of the product as the bench starts it, and the headers of its requests."""

from __future__ import annotations

import sys
from typing import Final

from ops.lab.bench.rig import Rig
from worker.model.callers import Scope
from worker.store import tokens

DOOR: Final = (sys.executable, "-m", "worker", "serve", "--parts", "api", "--port", "0")


def prepared(rig: Rig) -> dict[str, str]:
    """Return the headers of a request to the installation's API, and let it send many."""
    rig.settings["REFUNDS_HTTP_RATE"] = "100000"
    rig.settings["REFUNDS_SPOOL_DIR"] = str(rig.folder)
    token = tokens.create(
        rig.refunds.store,
        "bench",
        scopes=frozenset(Scope),
        ids_prefix="",
        expires_at=None,
        by="bench",
    )
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
