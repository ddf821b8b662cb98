"""The currencies there are, and with how many decimals each is written."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

# Currencies of which ISO 4217 and the table that Stripe publishes count the same decimals. Any other is not read in
# major units: MGA has two by ISO and none at Stripe, ISK and UGX none by ISO and are sent with two, HUF and TWD are
# whole in payouts, IQD, LYD, CLF, UYI and UYW are in ISO's table alone, and a metal has none at all.
_NONE: Final = "bif clp djf gnf jpy kmf krw pyg rwf vnd vuv xaf xof xpf"
_TWO: Final = (
    "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd btn bwp byn bzd cad cdf chf cny cop "
    "crc cup cve czk dkk dop dzd egp ern etb eur fjd fkp gbp gel ghs gip gmd gtq gyd hkd hnl htg idr ils inr irr jmd "
    "kes kgs khr kpw kyd kzt lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mru mur mvr mwk mxn myr mzn nad ngn nio nok "
    "npr nzd pab pen pgk php pkr pln qar ron rsd rub sar sbd scr sdg sek sgd shp sle sos srd ssp stn svc syp szl thb "
    "tjs tmt top try ttd tzs uah usd uyu uzs ved ves wst xcd xcg yer zar zmw zwg"
)
_THREE: Final = "bhd jod kwd omr tnd"
DECIMALS: Final = MappingProxyType(
    {currency: decimals for decimals, names in ((0, _NONE), (2, _TWO), (3, _THREE)) for currency in names.split()}
)
UNEQUAL: Final = frozenset({"clf", "huf", "iqd", "isk", "lyd", "mga", "twd", "ugx", "uyi", "uyw"})
KNOWN: Final = frozenset({*DECIMALS, *UNEQUAL})
"""The currencies that count by their own names; any other counts as `other`."""
