"""Ways to fork around a producer's door, each in its own process.

`python -m tests.unit.client.forking` reads lines of a scenario's name, the URL of the records and
that of the broker. It plays each in a fork of itself, which has used no door before: one process
imports what all of them need.

Each child hands in refunds of its own and has a bounded life. The scenario prints how its children
ended, and then its own exit code follows.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from celery import signals
from kombu.utils.objects import cached_property

from worker import RefundRequest, Refunds, StoreUnavailable
from worker.broker import queues
from worker.settings import Settings

CHILDREN = 3
ROUNDS = 8
EACH = 3
LIFE = 40
"""Seconds after which the kernel ends a child: it hangs."""
WHOLE_LIFE = 240
"""The same for a scenario."""

door: Refunds


def submit(name: str, count: int = EACH) -> None:
    for number in range(count):
        refund_id = f"{name}-{number}"
        assert (
            door.submit(
                RefundRequest(refund_id=refund_id, payment_intent=f"pi_{refund_id}", amount=5)
            ).version
            == 1
        )


def child(work: Callable[[], None]) -> int:
    """Fork a child that works and leaves as a program does, with everything that is freed at its
    end; return its id.
    """
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(LIFE)
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is, the child must not go on as the parent
        sys.stderr.write(f"child: {error!r}\n")
        os._exit(1)
    sys.exit(0)


def ends_of(pids: list[int]) -> list[int]:
    """Wait for children and return how each ended: 0, its code, or the signal's number below
    zero.
    """
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def forked(name: str, count: int = CHILDREN) -> list[int]:
    return [child(lambda number=number: submit(f"{name}{number}")) for number in range(count)]  # type: ignore[misc]  # bound at once


def before_use() -> list[int]:
    return ends_of(forked("child"))


def after_use() -> list[int]:
    submit("parent")
    pids = forked("child")
    submit("later")
    return ends_of(pids)


def while_built() -> list[int]:
    """A thread is in the midst of building, and goes on only when the children are over."""
    builds, may_go_on = threading.Event(), threading.Event()
    make = queues.make_celery

    def slow(settings: Settings) -> Any:
        if threading.current_thread() is not threading.main_thread():
            builds.set()
            may_go_on.wait(LIFE)
        return make(settings)

    vars(queues)["make_celery"] = slow
    thread = threading.Thread(target=submit, args=("thread",))
    thread.start()
    builds.wait(LIFE)
    ends = ends_of(forked("child", 1))
    may_go_on.set()
    thread.join(LIFE)
    submit("parent")
    return ends


def while_locks_are_held() -> list[int]:
    """A thread is in the midst of everything.

    It holds each lock that doors share, and those of this one's pool.
    """
    submit("parent")
    pool: Any = door.store.redis.connection_pool
    properties = [each for each in gc.get_objects() if type(each) is cached_property]
    locks = [each.lock for each in properties] + [
        signals.before_task_publish.lock,
        pool._lock,
        pool._fork_lock,
    ]
    held, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            may_go_on.wait(LIFE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(LIFE)
    ends = ends_of(forked("child", 2))
    may_go_on.set()
    thread.join(LIFE)
    submit("later")
    return ends


def while_first_used() -> list[int]:
    """A fresh door each time, and a fork somewhere in the first call of another thread."""
    global door  # noqa: PLW0603 - as a module-level object of a Django project is
    ends = []
    for number in range(ROUNDS):
        door = Refunds(settings=door.settings)
        thread = threading.Thread(target=submit, args=(f"thread{number}",))
        thread.start()
        time.sleep(0.002 * number)
        ends += ends_of(forked(f"round{number}x", 1))
        thread.join(LIFE)
    return ends


def while_published() -> list[int]:
    """Four threads hand in refunds all the while."""
    stop = threading.Event()

    def publish(name: str) -> None:
        number = 0
        while not stop.is_set():
            submit(f"{name}x{number}", 1)
            number += 1

    submit("parent")
    threads = [threading.Thread(target=publish, args=(f"thread{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    ends = []
    for number in range(3):
        ends += ends_of(forked(f"round{number}x", 4))
    stop.set()
    for thread in threads:
        thread.join(LIFE)
    return ends


def in_a_fork() -> list[int]:
    submit("parent")

    def work() -> None:
        submit("child")
        assert ends_of([child(lambda: submit("grandchild"))]) == [0]
        submit("childagain")

    def idle_between() -> None:
        assert ends_of([child(lambda: submit("grandchildofidle"))]) == [0]

    ends = ends_of([child(work), child(idle_between)])
    submit("later")
    return ends


def _process(name: str) -> None:
    signal.alarm(LIFE)
    submit(name)


def by_multiprocessing() -> list[int]:
    submit("parent")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_process, args=(f"child{n}",)) for n in range(CHILDREN)]
    for process in processes:
        process.start()
    submit("later")
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def children_that_leave_it_alone() -> list[int]:
    """What a child frees at its end is its parent's, which goes on."""
    submit("parent")

    def free() -> None:
        global door  # noqa: PLW0603 - as above
        del door

    def close() -> None:
        door.close()

    ends = ends_of([child(lambda: None), child(free), child(close)])
    submit("later")
    return ends


def a_closed_one() -> list[int]:
    submit("parent")
    door.close()

    def work() -> None:
        # Without pytest's `raises`: each of these processes would load pytest for it.
        said = ""
        try:
            submit("child")
        except StoreUnavailable as error:
            said = str(error)
        assert "closed" in said

    return ends_of([child(work)])


SCENARIOS = {
    each.__name__: each
    for each in (
        before_use,
        after_use,
        while_built,
        while_locks_are_held,
        while_first_used,
        while_published,
        in_a_fork,
        by_multiprocessing,
        children_that_leave_it_alone,
        a_closed_one,
    )
}


def play(scenario: str, redis_url: str, broker_url: str) -> None:
    global door  # noqa: PLW0603 - as above
    signal.alarm(WHOLE_LIFE)
    door = Refunds(settings=Settings.load(redis_url=redis_url, broker_url=broker_url))
    sys.stdout.write(json.dumps(SCENARIOS[scenario]()) + "\n")


if __name__ == "__main__":
    for line in sys.stdin:
        if not (pid := os.fork()):
            play(*line.split())
            break
        sys.stdout.write(f"{ends_of([pid])[0]}\n")
        sys.stdout.flush()
