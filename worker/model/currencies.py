"""The known currencies, and the number of decimals of each."""

from __future__ import annotations

from decimal import Decimal
from types import MappingProxyType
from typing import Final, Literal

AmountUnit = Literal["minor", "major"]
"""Whether an amount of 10.50 USD is written as 1050 or as 10.50."""

# Currencies for which ISO 4217 and Stripe's published table agree on the decimals. No other is read
# in major units: MGA has two decimals in ISO and none at Stripe. ISK and UGX have none in ISO and
# are sent with two. HUF and TWD are whole in payouts. IQD, LYD, CLF, UYI and UYW are only in ISO's
# table. A metal has no decimals at all.
_NONE: Final = "bif clp djf gnf jpy kmf krw pyg rwf vnd vuv xaf xof xpf"
_TWO: Final = (
    "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd btn bwp byn bzd"
    " cad cdf chf cny cop crc cup cve czk dkk dop dzd egp ern etb eur fjd fkp gbp gel ghs gip gmd"
    " gtq gyd hkd hnl htg idr ils inr irr jmd kes kgs khr kpw kyd kzt lak lbp lkr lrd lsl mad mdl"
    " mkd mmk mnt mop mru mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln"
    " qar ron rsd rub sar sbd scr sdg sek sgd shp sle sos srd ssp stn svc syp szl thb tjs tmt top"
    " try ttd tzs uah usd uyu uzs ved ves wst xcd xcg yer zar zmw zwg"
)
_THREE: Final = "bhd jod kwd omr tnd"
DECIMALS: Final = MappingProxyType(
    {
        currency: decimals
        for decimals, names in ((0, _NONE), (2, _TWO), (3, _THREE))
        for currency in names.split()
    }
)
UNEQUAL: Final = frozenset({"clf", "huf", "iqd", "isk", "lyd", "mga", "twd", "ugx", "uyi", "uyw"})
KNOWN: Final = frozenset({*DECIMALS, *UNEQUAL})
"""The currencies that metrics count under their own names; any other counts as `other`."""


def decimals_of(currency: str) -> int | None:
    """Return a lower-case currency's decimals, None if it cannot be read in major units."""
    return DECIMALS.get(currency)


def in_major(amount: int, currency: str | None, mark: str = ".", group: str = "") -> str | None:
    """Return minor units in major units, `1050` as `10.50`.

    None if the currency cannot be read in major units.
    """
    decimals = decimals_of(currency or "")
    return (
        None
        if decimals is None
        else f"{Decimal(amount).scaleb(-decimals):{group}.{decimals}f}".replace(".", mark)
    )
