"""How many replicas follow the records' server, compared with how many a write must reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from worker.monitoring.checks import Check, Trouble, fail, ok, warn


def online(info: Mapping[str, Any]) -> int:
    """Return how many replicas have the whole data set and follow, from the server's INFO."""
    found = [value for name, value in info.items() if name[:5] == "slave" and name[5:].isdigit()]
    return sum(each.get("state") == "online" for each in found if isinstance(each, Mapping))


def replicas(info: Mapping[str, Any], wanted: int) -> Iterator[Check]:
    """Check that as many replicas follow as `REFUNDS_REPLICAS` demands, and not more."""
    found = online(info)
    if found < wanted:
        text = (
            f"{found} replicas follow this server, and REFUNDS_REPLICAS demands {wanted}: no refund"
            " is accepted or sent"
        )
        fix = "connect the missing replicas; see RefundsReplicasMissing in ops/docs/operations.md"
        yield fail("replicas", text, fix, Trouble.AWAY)
    elif found > wanted:
        text = (
            f"{found} replicas follow this server, and a write must reach {wanted}: if another one"
            " is promoted, accepted refunds are lost and sent ones may be sent again"
        )
        yield warn("replicas", text, f"REFUNDS_REPLICAS={found}, for all workers and producers")
    elif wanted:
        yield ok("replicas", f"{found} replicas follow, as many as a write must reach")
