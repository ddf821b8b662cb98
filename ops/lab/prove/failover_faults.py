"""What is done to the servers of the records, so that a replica is promoted."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx

from ops.lab.prove.cluster import Node
from ops.lab.prove.failover_rig import FailoverRig, Replicated
from ops.lab.prove.proxy import Silence
from ops.lab.prove.rig import CANARY, PATIENCE, ROOT, RigError
from worker.errors import NotInReview, RefundError
from worker.model.refund import Lane
from worker.model.request import RefundRequest

BEHIND_SECONDS: Final = 1.0
"""How long replication stands still before the primary is killed: the time is the fault."""
FROZEN_SECONDS: Final = 6.0
QUEUE: Final = 300
ROWS: Final = 300
_LOADED_SECONDS: Final = 2.0
"""Of load before each fault."""
_CUT_SECONDS: Final = 8.0
_BEFORE_REVIVAL: Final = 3.0
"""What a supervisor takes to start a killed server again, once another one is the primary."""
_AGAIN: Final = 5
_DONE: Final = frozenset({0, 9})
_DECISIONS: Final = 10

Fail = Callable[[FailoverRig], None]


@contextmanager
def _loaded(rig: FailoverRig) -> Iterator[Node]:
    """Yield the primary under load that goes on until the servers are whole again."""
    rig.cluster.await_whole()
    with rig.producing():
        # Load that is under way at every step of an attempt; only time makes it that.
        time.sleep(_LOADED_SECONDS)
        yield rig.cluster.primary()
        rig.cluster.await_whole()
        time.sleep(_LOADED_SECONDS)


def _killed(rig: FailoverRig, primary: Node, began: float) -> None:
    """Kill the primary, and start it again as a replica once another one was promoted."""
    primary.server.kill()
    rig.promoted(primary, began)
    time.sleep(_BEFORE_REVIVAL)
    rig.cluster.revive(primary)


def killed(rig: FailoverRig) -> None:
    """Kill the primary whose replicas hold all that it has."""
    with _loaded(rig) as primary:
        _killed(rig, primary, time.time())


@contextmanager
def _silenced(primary: Node, what: Silence, *sources: str) -> Iterator[float]:
    """Silence the primary towards these addresses, or all; yield when that began (epoch s)."""
    began = time.time()
    primary.front.silence(what, *sources)
    yield began
    primary.front.silence("none")


def _silenced_and_killed(rig: FailoverRig, primary: Node, what: Silence, *sources: str) -> None:
    with _silenced(primary, what, *sources) as began:
        # What is written meanwhile is what a promotion may lose.
        time.sleep(BEHIND_SECONDS)
        _killed(rig, primary, began)


def _behind(rig: FailoverRig, primary: Node) -> None:
    _silenced_and_killed(rig, primary, "replies", *rig.cluster.others(primary))


def killed_behind(rig: FailoverRig) -> None:
    """Let nothing reach the replicas for a while, then kill the primary."""
    with _loaded(rig) as primary:
        _behind(rig, primary)


def killed_unheard(rig: FailoverRig) -> None:
    """Let the replicas' acknowledgements be lost for a while, then kill the primary."""
    with _loaded(rig) as primary:
        # Nothing may leave meanwhile, although the replicas have it all.
        _silenced_and_killed(rig, primary, "requests", *rig.cluster.others(primary))


def one_behind(rig: FailoverRig) -> None:
    """Let nothing reach one of the replicas for a while, then kill the primary."""
    with _loaded(rig) as primary:
        _silenced_and_killed(rig, primary, "replies", rig.cluster.others(primary)[0])


def frozen(rig: FailoverRig) -> None:
    """Stop the primary in its tracks, and let it go on once another one was promoted."""
    with _loaded(rig) as primary:
        began = time.time()
        rig.cluster.freeze(primary)
        rig.promoted(primary, began)
        # As long as a machine that is moved stands still.
        time.sleep(max(0.0, began + FROZEN_SECONDS - time.time()))
        rig.cluster.thaw()


def cut_with_clients(rig: FailoverRig) -> None:
    """Cut the primary off from the Sentinels and replicas; the clients still reach it."""
    with _loaded(rig) as primary:
        _cut(rig, primary, *rig.cluster.others(primary), *rig.cluster.sentinels())


def cut_alone(rig: FailoverRig) -> None:
    """Cut the primary off from everything."""
    with _loaded(rig) as primary:
        _cut(rig, primary)


def cut_with_replica(rig: FailoverRig) -> None:
    """Cut the primary and one replica off from the rest; the clients still reach them."""
    with _loaded(rig) as primary:
        beside, *rest = [node for node in rig.cluster.nodes if node is not primary]
        apart = [*(node.source for node in rest), *rig.cluster.sentinels()]
        beside.front.silence("both", *apart)
        _cut(rig, primary, *apart)
        beside.front.silence("none")


def _cut(rig: FailoverRig, primary: Node, *sources: str) -> None:
    with _silenced(primary, "both", *sources) as began:
        rig.promoted(primary, began)
        # Two primaries for a while: what the old one takes now is lost when they meet.
        time.sleep(max(0.0, began + _CUT_SECONDS - time.time()))


def with_queue(rig: FailoverRig) -> None:
    """Let replication stand still while workers empty a long queue, then kill the primary."""
    with _loaded(rig) as primary:
        with rig.frozen():
            requests = rig.drawn(QUEUE)
            _refunds(rig).submit_many(requests, lane=Lane.BULK)
            rig.accepted.update((one.refund_id, one) for one in requests)
            rig.asking(lambda: rig.redis.wait(rig.replicas, 1000))
        _behind(rig, primary)


def _refunds(rig: FailoverRig) -> Any:
    if not isinstance(rig.subject, Replicated):
        raise TypeError("only the product suffers failovers")
    return rig.subject.refunds


# During an import


def during_import(rig: FailoverRig) -> None:
    """Let replication stand still while a file is imported, then kill the primary."""
    plain = (one for one in iter(lambda: rig.drawn(1)[0], None) if one.amount is not None)
    asked = [
        RefundRequest(refund_id=one.refund_id, payment_intent=one.payment_intent, amount=one.amount)
        for one in islice(plain, ROWS)
    ]
    file = rig.folder / f"import-{len(rig.promotions)}.csv"
    _write(file, asked)
    with _loaded(rig) as primary, ThreadPoolExecutor(1) as pool:
        importing = pool.submit(_imported, rig, file)
        batch = "refunds:batches"
        rig.until(lambda: rig.asking(lambda: rig.redis.exists(batch)) > 0, "the import began")
        _behind(rig, primary)
        importing.result()
        rig.accepted.update((one.refund_id, one) for one in asked)


def _write(file: Path, rows: Sequence[RefundRequest]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("refund_id", "payment_intent", "amount"))
        writer.writerows((one.refund_id, one.payment_intent, one.amount) for one in rows)


def _imported(rig: FailoverRig, file: Path) -> None:
    """Run `refunds import` until it says that every row is accepted."""
    end = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < end:
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "worker", "import", str(file), "--allow-repeat"],
            env=rig.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode in _DONE:
            return
        if done.returncode != _AGAIN:
            raise RigError(f"refunds import ended with {done.returncode}: {done.stderr}")
    raise RigError("the import was never done")


# During review


def during_review(rig: FailoverRig) -> None:
    """Let a person decide while replication stands still, then kill the primary."""
    rig.sandbox.set_faults("cut_after:p=0.5")
    with _loaded(rig) as primary:
        rig.until(lambda: len(_in_review(rig)) >= _DECISIONS, "refunds are in review")
        with ThreadPoolExecutor(1) as pool:
            with _silenced(primary, "replies", *rig.cluster.others(primary)) as began:
                deciding = pool.submit(_decide, rig, began + PATIENCE)
                time.sleep(BEHIND_SECONDS)
                _killed(rig, primary, began)
            deciding.result()
    rig.sandbox.set_faults("")


def _in_review(rig: FailoverRig) -> list[str]:
    found: list[str] = rig.asking(lambda: rig.redis.zrange("refunds:index:review", 0, -1))
    return found


def _decide(rig: FailoverRig, end: float) -> None:
    """Name the provider's refund of some that are in review, each until it is acknowledged."""
    for refund_id in _in_review(rig)[:_DECISIONS]:
        provider_id = _made_there(rig, refund_id)
        while provider_id and time.time() < end:
            try:
                _refunds(rig).resolve(
                    refund_id, "succeeded", note="seen there", provider_refund_id=provider_id
                )
            except NotInReview:
                # Saved before the reply was lost: it is decided, and the reply did not say so.
                break
            except RefundError:
                # As a person does that reads "run it again".
                time.sleep(0.2)
            else:
                rig.decided.append(refund_id)
                break


def _made_there(rig: FailoverRig, refund_id: str) -> str:
    """Return the provider's id of a refund, '' if it has none."""
    payment = rig.accepted[refund_id].payment_intent
    with httpx.Client(base_url=rig.sandbox.url, auth=(CANARY, ""), timeout=PATIENCE) as client:
        asked = {"payment_intent": payment, "limit": "100"}
        listed = client.get("/v1/refunds", params=asked).json().get("data", [])
    found = [one["id"] for one in listed if one["metadata"].get("refund_id") == refund_id]
    return found[0] if found else ""


def times(fail: Fail, count: int) -> Callable[[Any, Random], int]:
    """Return the fault that servers fail in this way so many times, one after the other."""

    def inject(rig: Any, _dice: Random) -> int:
        for _ in range(count):
            fail(rig)
        return len(rig.promotions)

    return inject


FAULTS: Final[Mapping[str, Fail]] = {
    "killed": killed,
    "killed behind": killed_behind,
    "killed unheard": killed_unheard,
    "killed, one replica behind": one_behind,
    "frozen": frozen,
    "cut off with its clients": cut_with_clients,
    "cut off with a replica": cut_with_replica,
    "cut off alone": cut_alone,
    "a queue": with_queue,
    "an import": during_import,
    "a review": during_review,
}
