"""What a probe concludes from each kind of provider, and that it spends what it said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.probing.asking import advised, answers, moved, posts, probed, provider
from tests.unit.probing.asking import settings as settings_of
from worker.model.answers import Outcome, PaymentView
from worker.probing.probe import Probe
from worker.probing.questions import MAX_POSTS, Order, Problem, Question
from worker.probing.report import Report
from worker.sandbox.running import Sandbox

Q = Question
PENDING = "pi_pending_succeeded_1"


def spent_as_told(report: Report, sandbox: Sandbox) -> None:
    """The ledger agrees with the report.

    No more than may have been spent, no less than is known, under one name.
    """
    assert report.spent <= moved(sandbox) <= report.spent + report.uncertain
    assert report.posts == len(posts(sandbox)) <= MAX_POSTS
    assert moved(sandbox) <= MAX_POSTS * report.order.amount
    assert all(entry["refund_id"].startswith(report.order.run) for entry in sandbox.effects())


@pytest.mark.parametrize(
    ("modes", "payment", "expected", "settings", "money"),
    [
        pytest.param(
            {},
            PENDING,
            {
                Q.KEY: "yes",
                Q.GUARD: "yes",
                Q.LIST: "yes",
                Q.TOTALS: "yes",
                Q.PENDING: "yes",
                Q.REFUND: "yes",
            },
            {"IDEMPOTENCY": "trust", "READBACK": "list", "TOTALS": "proof"},
            1,
            id="honours keys, lists, counts pending refunds",
        ),
        pytest.param(
            {"idempotency": "ignore"},
            PENDING,
            {Q.KEY: "no", Q.GUARD: "no", Q.LIST: "yes", Q.TOTALS: "yes", Q.PENDING: "yes"},
            {"IDEMPOTENCY": "verify", "READBACK": "list", "TOTALS": "proof"},
            3,
            id="ignores keys",
        ),
        pytest.param(
            {"idempotency": "ignore", "list_refunds": False},
            "pi_1",
            {Q.KEY: "no", Q.GUARD: "no", Q.LIST: "no", Q.TOTALS: "yes", Q.PENDING: "not seen"},
            {"IDEMPOTENCY": "verify", "READBACK": "totals", "TOTALS": "hint"},
            3,
            id="ignores keys and has no list",
        ),
        pytest.param(
            {"list_refunds": False},
            PENDING,
            {Q.KEY: "yes", Q.GUARD: "yes", Q.LIST: "no", Q.TOTALS: "yes", Q.PENDING: "yes"},
            {"IDEMPOTENCY": "trust", "READBACK": "totals", "TOTALS": "proof"},
            1,
            id="has no list",
        ),
        pytest.param(
            {"pending_in_totals": False},
            PENDING,
            {Q.KEY: "yes", Q.TOTALS: "yes", Q.PENDING: "no"},
            {"IDEMPOTENCY": "trust", "READBACK": "list", "TOTALS": "hint"},
            1,
            id="leaves pending refunds out of its totals",
        ),
        pytest.param(
            {"envelope": "flat"},
            "pi_1",
            {Q.KEY: "yes", Q.GUARD: "yes", Q.PENDING: "not seen", Q.ERROR: "not seen"},
            {"IDEMPOTENCY": "trust", "READBACK": "list", "TOTALS": "hint"},
            1,
            id="words its errors flat",
        ),
        pytest.param(
            {"charges_expanded": False, "created_in_ms": True},
            "pi_eur_1",
            {Q.KEY: "yes", Q.TOTALS: "yes"},
            {"IDEMPOTENCY": "trust"},
            1,
            id="shows the totals on the charge alone",
        ),
    ],
)
async def test_each_kind_of_provider_is_told_by_what_it_does(
    modes: dict[str, Any],
    payment: str,
    expected: dict[Question, str],
    settings: dict[str, str],
    money: int,
) -> None:
    with provider(**modes) as sandbox:
        report = await probed(sandbox, payment)
        assert report.problem is None
        assert answers(report).items() >= expected.items()
        assert advised(report).items() >= settings.items()
        assert (report.spent, report.uncertain, moved(sandbox)) == (money, 0, money)
        spent_as_told(report, sandbox)


class Doubling(Probe):
    """A probe of a provider that answers a repeat with the first refund, and pays it once more.

    Its totals and its list show each refund three pauses after it was made.
    """

    made_at: tuple[int, ...] = ()
    pauses = 0
    is_counted = True

    @property
    def shown(self) -> int:
        return sum(self.pauses >= at + 3 for at in self.made_at)

    async def _post(self, number: int, *, key_of: int | None = None) -> Outcome:
        if key_of is None:
            self.made_at += (self.pauses,)
        return await super()._post(number, key_of=key_of)

    async def _total(self) -> PaymentView | Problem:
        view = await super()._total()
        assert isinstance(view, PaymentView)
        return replace(view, refunded=self.shown if self.is_counted else view.refunded)

    async def _list(self) -> Any:
        shown = await super()._list()
        return ([*shown[0]] * self.shown, shown[1]) if isinstance(shown, tuple) else shown


@pytest.mark.parametrize("modes", [{"list_refunds": False}, {"pending_in_totals": False}])
async def test_a_second_effect_is_waited_for_as_long_as_the_first(modes: dict[str, Any]) -> None:
    with provider(**modes) as sandbox:

        async def pause(_: float) -> None:
            probe.pauses += 1

        payment = "pi_1" if "list_refunds" in modes else "pi_pending_1"
        probe = Doubling(settings_of(sandbox.url), Order.new(payment, 1), sleep=pause)
        probe.is_counted = payment == "pi_1"
        report = await probe.run()
        assert answers(report)[Q.KEY] == "no"
        assert advised(report)["IDEMPOTENCY"] == "verify"


class Shortened(Probe):
    """A probe of a provider whose list is whole at first, and not once a request was repeated."""

    requests = 0

    async def _post(self, number: int, *, key_of: int | None = None) -> Outcome:
        self.requests += 1
        return await super()._post(number, key_of=key_of)

    async def _list(self) -> Any:
        shown = await super()._list()
        return (shown[0], self.requests <= 1) if isinstance(shown, tuple) else shown


async def test_a_list_that_was_not_read_to_its_end_does_not_count_to_one() -> None:
    with provider(pending_in_totals=False) as sandbox:
        report = await Shortened(
            settings_of(sandbox.url), Order.new("pi_pending_1", 1), sleep=no_pause
        ).run()
        assert (answers(report)[Q.LIST], answers(report)[Q.KEY]) == ("yes", "unclear")
        assert advised(report)["IDEMPOTENCY"] == "verify"


async def no_pause(_: float) -> None:
    """Wait for nothing."""


async def test_what_no_total_and_no_list_can_count_is_not_trusted() -> None:
    with provider(list_refunds=False, pending_in_totals=False) as sandbox:
        report = await probed(sandbox, "pi_pending_1", settles=False)
        assert answers(report)[Q.KEY] == "unclear"
        assert answers(report)[Q.TOTALS] == "unclear"
        assert (advised(report)["IDEMPOTENCY"], advised(report)["TOTALS"]) == ("verify", "hint")


async def test_the_names_of_what_moved_are_told() -> None:
    with provider() as sandbox:
        evidence = (await probed(sandbox, amount=3)).findings[Q.TOTALS].evidence
        assert "it rose by exactly 3" in evidence
        assert "charge.amount_refunded" in evidence
        assert "payment_intent.charges.data[0].amount_refunded" in evidence


async def test_each_request_is_valid_and_recognisable() -> None:
    with provider(idempotency="ignore") as sandbox:
        report = await probed(sandbox, amount=2)
        assert [request["schema_errors"] for request in posts(sandbox)] == [[], [], []]
        assert [entry["refund_id"] for entry in sandbox.effects()] == [
            f"{report.order.run}-1",
            f"{report.order.run}-1",
            f"{report.order.run}-2",
        ]
        assert report.order.run.startswith("probe-")
        assert (report.spent, moved(sandbox)) == (6, 6)


@pytest.mark.parametrize(
    ("modes", "verdict", "key", "money"),
    [
        ({"faults": "http_500_before:times=1"}, "no", "yes", 1),
        ({"faults": "http_500_after:times=1"}, "no", "yes", 1),
        ({"faults": "http_500_before:times=1", "store_5xx": True}, "yes", "yes", 1),
        ({"faults": "http_500_after:times=1", "store_5xx": True}, "yes", "yes", 2),
        ({"faults": "http_500_before:times=2"}, "no", "yes", 2),
        ({"faults": "http_500_after:times=1", "idempotency": "ignore"}, "no", "no", 4),
    ],
)
async def test_a_5xx_on_the_way_shows_whether_it_is_kept(
    modes: dict[str, Any], verdict: str, key: str, money: int
) -> None:
    with provider(**modes) as sandbox:
        report = await probed(sandbox)
        assert report.problem is None
        assert (answers(report)[Q.ERROR], answers(report)[Q.KEY], moved(sandbox)) == (
            verdict,
            key,
            money,
        )
        spent_as_told(report, sandbox)


@pytest.mark.parametrize(
    ("faults", "sent", "money"),
    [
        ("http_500_before", 3, 0),
        ("http_500_after", 3, 2),
        ("cut_after:times=1", 1, 1),
        ("reset_before:n=2", 2, 1),
        ("http_503_before:n=3", 3, 1),
        ("http_429:n=2", 2, 1),
    ],
)
async def test_a_provider_that_fails_on_the_way_ends_the_probe_with_what_may_have_been_spent(
    faults: str, sent: int, money: int
) -> None:
    with provider(faults=faults) as sandbox:
        report = await probed(sandbox)
        assert report.problem is not None
        assert (report.problem.sort, report.posts, moved(sandbox)) == ("away", sent, money)
        assert Q.KEY not in report.findings
        assert advised(report)["IDEMPOTENCY"] == "verify"
        spent_as_told(report, sandbox)


@pytest.mark.parametrize("payment", ["pi_declined", "pi_missing", "pi_refunded"])
async def test_a_refused_test_refund_ends_the_probe_and_moves_nothing(payment: str) -> None:
    with provider() as sandbox:
        report = await probed(sandbox, payment)
        assert report.problem is not None
        assert (report.problem.sort, report.spent, report.uncertain, moved(sandbox)) == (
            "refused",
            0,
            0,
            0,
        )


async def test_a_payment_that_is_not_fit_is_sent_nothing() -> None:
    with provider() as sandbox:
        sandbox.create_payment_intent("pi_small", amount=17)
        for payment, why in (
            ("pi_small", "only 17 minor units are left"),
            ("pi_two_charges", "several charges"),
        ):
            report = await probed(sandbox, payment, amount=3)
            assert report.problem is not None
            assert why in report.problem.text
        assert posts(sandbox) == []


async def test_a_refused_key_is_sent_nothing() -> None:
    with provider() as sandbox:
        sandbox.set_faults("http_401:on=any")
        report = await probed(sandbox)
        assert report.problem is not None
        assert (report.problem.sort, report.posts, posts(sandbox)) == ("key", 0, [])


async def test_reads_that_fail_in_passing_are_made_again() -> None:
    with provider() as sandbox:
        sandbox.set_faults("http_500_before:on=get:times=1,http_503_before:on=list:times=1")
        report = await probed(sandbox)
        assert (answers(report)[Q.LIST], answers(report)[Q.TOTALS], moved(sandbox)) == (
            "yes",
            "yes",
            1,
        )
