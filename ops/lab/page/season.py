"""The season that `./ops/dev page` shows: an installation of real processes on loopback, whose
refunds have come into every state.
"""

from __future__ import annotations

import csv
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx

from worker import batches
from worker.client import Refunds
from worker.model.callers import Scope
from worker.model.hints import Hint
from worker.model.refund import Refund, Stage
from worker.model.request import RefundRequest
from worker.sandbox.installation import environment, process, sandbox_process
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import Sandbox
from worker.settings import Settings
from worker.store import audit, callback_state, callbacks, rechecks, tokens
from worker.store.pace import MINUTE_MS
from worker.store.store import SETTLED

KEY: Final = "sk_test_page"
WEBHOOK_SECRET: Final = "whsec_of_the_page"  # noqa: S105 - of a sandbox that moves no money
ACTOR: Final = "ann"
READER: Final = "bob"
MINUTES: Final = 30
PATIENCE: Final = 60.0
BUSY: Final = "pi_busy_2007"
UNREADABLE: Final = "pi_unreadable_2008"
BROKEN: Final = "pi_broken_3001"
UNSENT: Final = "pi_unsent_2005"
NAMED: Final = "pi_named_5001"
FAULTS: Final = ",".join(
    (
        f"http_429:pi={BUSY}:retry_after=absent",  # waits
        f"http_429:pi={NAMED}:retry_after=absent:n=2:times=1000",  # waits after one by hand
        f"cut_after:pi={UNREADABLE}",  # is in doubt,
        f"html_503_before:on=get_payment_intent:pi={UNREADABLE}:n=2:times=1000",  # and stays so
        # Whether these were executed cannot be known from the payment's totals.
        f"http_500_before:pi={BROKEN}",
        "http_500_before:pi=pi_season_5",
    )
)


class SeasonError(RuntimeError):
    """The season did not come up; the text says what was waited for."""


@dataclass(frozen=True, kw_only=True)
class Season:
    """A running installation: where its page is, and who may sign in."""

    page: str
    redis_url: str
    sandbox: Sandbox
    refunds: Refunds
    actor_token: str
    reader_token: str


@contextmanager
def running_season(folder: Path, *, port: int = 0) -> Iterator[Season]:
    """Start everything, bring refunds into every state, and end everything.

    Raises `SeasonError` and `RefundError`.
    """
    with ExitStack() as stack:
        redis_url = stack.enter_context(running_server(dir=folder)).url
        shop, books = (stack.enter_context(_receiver(status)) for status in (204, 503))
        sandbox = stack.enter_context(
            sandbox_process(
                "--latency", "40", "--no-settle", "--faults", FAULTS, log=folder / "sandbox.log"
            )
        ).sandbox
        variables = _variables(folder, redis_url, sandbox.url, {"shop": shop, "books": books})
        settings = Settings.load(redis_url=redis_url, api_url=sandbox.url)
        refunds = stack.enter_context(Refunds(settings=settings))
        _before_the_worker(refunds)
        worker = [sys.executable, "-m", "worker", "worker"]
        stack.enter_context(process(worker, variables, folder / "worker.log"))
        page = stack.enter_context(_serving(variables, folder, port))
        _fill(refunds, folder, variables)
        _change_later(refunds, sandbox, f"{page}/webhooks/wooshpay")
        yield Season(
            page=f"{page}/page",
            redis_url=redis_url,
            sandbox=sandbox,
            refunds=refunds,
            actor_token=_token(refunds, ACTOR, Scope.READ, Scope.OPERATE, Scope.SUBMIT),
            reader_token=_token(refunds, READER, Scope.READ),
        )


def _variables(
    folder: Path, redis_url: str, api_url: str, endpoints: Mapping[str, str]
) -> dict[str, str]:
    lines = []
    for name, url in endpoints.items():
        (folder / f"callback_{name}").write_text(f"whsec_{secrets.token_hex(24)}\n")
        lines += ["[[endpoints]]", f'name = "{name}"', f'url = "{url}"', "allow_private = true"]
    (folder / "callbacks.toml").write_text("\n".join(lines))
    return environment(
        {
            "REFUNDS_REDIS_URL": redis_url,
            "REFUNDS_API_URL": api_url,
            "REFUNDS_API_KEY": KEY,
            "REFUNDS_READBACK": "totals",
            # A real provider gets five minutes; this one is never late.
            "REFUNDS_SETTLE_SECONDS": "0.3",
            "REFUNDS_REQUEST_TIMEOUT_SECONDS": "3",
            "REFUNDS_LEASE_SECONDS": "10",
            "REFUNDS_LOG_FORMAT": "json",
            "REFUNDS_ACTOR": ACTOR,
            "REFUNDS_WEBHOOK_SECRETS": WEBHOOK_SECRET,
            "REFUNDS_CALLBACKS_FILE": str(folder / "callbacks.toml"),
            "REFUNDS_SECRETS_DIR": str(folder),
        }
    )


@contextmanager
def _receiver(status: int) -> Iterator[str]:
    """The address of an endpoint that answers every callback with this status."""

    class Callbacks(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Callbacks) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _serving(variables: Mapping[str, str], folder: Path, port: int) -> Iterator[str]:
    log = folder / "serve.log"
    command = [sys.executable, "-m", "worker", "serve", "--parts", "api,page,webhooks"]
    command += ["--port", str(port)]
    with process(command, variables, log) as serving:

        def address() -> str | None:
            if serving.poll() is not None:
                raise SeasonError(f"'refunds serve' did not start: {log.read_text().strip()}")
            found = re.search(r"listening at (\S+)", log.read_text())
            return found[1] if found else None

        yield until(address, "'refunds serve' listens")
        # No proxy has to notice that it ends: a second signal ends the time for that.
        serving.terminate()


def until(found: Callable[[], Any], what: str) -> Any:
    """Return what is found as soon as it is something. Raises `SeasonError` after a minute."""
    end = time.monotonic() + PATIENCE
    while not (value := found()):
        if time.monotonic() > end:
            raise SeasonError(f"waited {PATIENCE:.0f} s in vain until {what}")
        time.sleep(0.05)
    return value


def _do(refunds: Refunds, action: str, target: str, work: Callable[[], Any]) -> None:
    """Do what a person does on the page."""
    deed = audit.Deed(by=ACTOR, via="page", address="127.0.0.1", action=action, target=target)
    audit.carry_out(refunds.store, deed, work)


def _token(refunds: Refunds, name: str, *scopes: Scope) -> str:
    return tokens.create(
        refunds.store, name, scopes=frozenset(scopes), ids_prefix="", expires_at=None, by=ACTOR
    )


def request(refund_id: str, payment: str, amount: int = 500, **fields: Any) -> RefundRequest:
    """Return a refund as an order asks for it."""
    return RefundRequest(
        refund_id=refund_id,
        payment_intent=payment,
        amount=amount,
        reason="requested_by_customer",
        metadata={"order": refund_id.split("-")[1]},
        **fields,
    )


def _before_the_worker(refunds: Refunds) -> None:
    """Cancel refunds unsent, and have an endpoint give up the callbacks about them.

    An endpoint gives up after three days, so the last failed try is written as a worker writes it.
    """
    store = refunds.store
    callback_state.turn_on(store, ACTOR)
    ids = [f"order-2005-{number}" for number in (1, 2, 3)]
    for refund_id in ids:
        refunds.submit(request(refund_id, UNSENT))
        _do(refunds, "cancel", refund_id, partial(refunds.cancel, refund_id, by=ACTOR))
    store.run(callbacks.outbox([callbacks.Wanted(name="books", ids="", most=0)]))
    for refund_id in ids:
        token = secrets.token_hex(8)
        lease = timedelta(seconds=30)
        taken = store.run(callbacks.take("books", refund_id, token=token, lease=lease))
        log = {"member": refund_id, "status": "503", "result": "failed"}
        store.run(
            callbacks.ended(
                "books",
                refund_id,
                token=token,
                result="failed",
                version=(taken.stored or {}).get("version", ""),
                log=log,
            )
        )


def _fill(refunds: Refunds, folder: Path, variables: Mapping[str, str]) -> None:
    """Bring refunds into every state, as orders and from two files."""
    season = _rows("season", 60)
    with ThreadPoolExecutor() as pool:
        sale = pool.submit(_import, folder, variables, "sale", _rows("sale", 25), "--delay", "70m")
        _import(folder, variables, "season", season)
        for each in _requests():
            refunds.submit(each)
        sale.result()
    pause = partial(batches.pause_batch, refunds.store, "sale", ACTOR)
    _do(refunds, "batch pause", "sale", pause)
    reach = partial(_reach, refunds)
    reach("order-2006-1", lambda refund: refund.stage is Stage.PROCESSING)
    reach("order-2007-1", lambda refund: refund.stage is Stage.WAITING)
    reach("order-2008-1", lambda refund: refund.stage is Stage.IN_DOUBT)
    reach("order-3001-1", lambda refund: refund.stage is Stage.REVIEW)
    for refund_id, *_ in season:
        reach(refund_id, lambda refund: refund.settled or refund.stage is Stage.REVIEW)
    spread(refunds)


def _change_later(refunds: Refunds, sandbox: Sandbox, webhook: str) -> None:
    """Have the provider fail a refund that succeeded, and show one that was canceled here.

    Only now does it say anything: a webhook would end each doubt at once.
    """
    _name_another(refunds, sandbox)
    sandbox.set_modes(webhook=webhook, webhook_secret=WEBHOOK_SECRET)
    settled = _reach(refunds, "order-4001-1", lambda refund: refund.settled)
    sandbox.move_refund(settled.provider_refund_id or "", "failed", "expired_or_canceled_card")
    _make_by_hand(sandbox, UNSENT, 500, "order-2005-1")
    _reach(refunds, "order-4001-1", lambda refund: refund.reversed_at is not None)
    _reach(refunds, "order-2005-1", lambda refund: refund.contradicted_by is not None)


def _name_another(refunds: Refunds, sandbox: Sandbox) -> None:
    """Have a refund wait for a person although the provider did nothing of what was sent.

    The provider has a refund of another amount that names it, as a webhook says.
    """
    refund_id = "order-5001-1"
    made = _make_by_hand(sandbox, NAMED, 300, refund_id)
    refunds.submit(request(refund_id, NAMED, 4500, currency="usd"))
    _reach(refunds, refund_id, lambda refund: refund.stage is Stage.WAITING)
    refunds.store.run(rechecks.hint(Hint(provider_refund_id=made, refund_id=refund_id)))
    _reach(refunds, refund_id, lambda refund: refund.stage is Stage.REVIEW)


def _make_by_hand(sandbox: Sandbox, payment: str, amount: int, refund_id: str) -> str:
    """Make a refund in the provider's dashboard that names one of ours, and return its id."""
    named = {"refund_id": refund_id, "refund_generation": "1"}
    answer = httpx.post(
        f"{sandbox.url}/v1/refunds",
        auth=(KEY, ""),
        headers={"Idempotency-Key": f"by-hand-{refund_id}"},
        json={"payment_intent": payment, "amount": str(amount), "metadata": named},
    )
    return str(answer.raise_for_status().json()["id"])


def _requests() -> Iterator[RefundRequest]:
    for number in range(1001, 1025):
        yield request(f"order-{number}-1", f"pi_{number}", 25 * number)
    yield request("order-2001-1", "pi_declined_2001", 1200)
    yield request("order-2003-1", "pi_2003", 250_000)  # more than was paid
    yield request("order-2004-1", "pi_canceled_2004")
    yield request("order-2006-1", "pi_pending_2006", 900)
    yield request("order-2007-1", BUSY, 800)
    yield request("order-2008-1", UNREADABLE, 700)
    yield request("order-3001-1", BROKEN, 2500)
    yield request("order-4001-1", "pi_4001", 3400)
    yield request("order-4002-1", "pi_failed_4002", 1500)


def _reach(refunds: Refunds, refund_id: str, condition: Callable[[Refund], bool]) -> Refund:
    def found() -> Refund | None:
        refund = refunds.get(refund_id)
        return refund if condition(refund) else None

    reached: Refund = until(found, f"{refund_id} is where the season has it")
    return reached


def _rows(batch: str, count: int) -> list[tuple[str, str, int, int, str]]:
    """Return the rows of a file; every ninth refund is declined."""
    return [
        (
            f"{batch}-{number}",
            f"{'pi_declined' if number % 9 == 0 else 'pi'}_{batch}_{number}",
            990 + 10 * number,
            number,
            "usd",
        )
        for number in range(1, count + 1)
    ]


def _import(
    folder: Path,
    variables: Mapping[str, str],
    batch: str,
    rows: Iterable[Sequence[object]],
    *options: str,
) -> None:
    path = folder / f"{batch}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["refund_id", "payment_intent", "amount", "metadata.order", "currency"])
        writer.writerows(rows)
    command = [sys.executable, "-m", "worker", "import", str(path), "--batch", batch, *options]
    done = subprocess.run(  # noqa: S603 - ours
        command, env=dict(variables), check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SeasonError(f"'refunds import' ended with {done.returncode}: {done.stderr.strip()}")


def spread(refunds: Refunds) -> None:
    """Have what settled in a moment be listed as if it had settled over the latest half an hour."""
    store = refunds.store
    now = int(store.time().timestamp() * 1000)
    for status in SETTLED:
        key = store.key(f"index:{status}")
        members = store.redis.zrange(key, 0, -1)
        # A slow beginning, a peak, and a slow end.
        ages = {
            member: now - int(MINUTES * MINUTE_MS * (index / len(members)) ** 1.5)
            for index, member in enumerate(members)
        }
        if ages:
            store.redis.zadd(key, ages, xx=True)
