"""The options of an import over HTTP: those of `refunds import`, as parameters or as fields."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar, get_args

from aiohttp import web
from multidict import MultiMapping

from worker import batches
from worker.file_import import (
    DELIMITER_OF,
    ImportSettings,
    Limits,
    Unusable,
    columns_of,
    each_sum,
    length_of_time,
    most_errors,
    sums_or_one,
)
from worker.http.queries import Query
from worker.importer import MOST_ATTEMPTS, Format, ImportOptions
from worker.model.callers import Caller
from worker.model.currencies import AmountUnit
from worker.model.request import shown
from worker.settings import Settings

T = TypeVar("T")

_REPEATABLE: Final = ("column", "expect_total", "max_total")
_FLAGS: Final = ("dry_run", "allow_repeat", "all_remaining", "again", "ignore_extra")
_ONCE: Final = (
    *("name", "on_error", "max_errors", "expect_rows", "delay"),
    *("delimiter", "sheet", "id_from", "attempt", "amount_unit", "decimal", "currency"),
)
_MOST_ROWS: Final = 10**8


class Wanted:
    """What an import is to do: the same options as those of `refunds import`.

    Without a `form` the file's name or contents show it. Raises `InvalidRequest` with every wrong
    option, and `InputError` for those that exclude each other.
    """

    def __init__(
        self,
        stated: web.Request | MultiMapping[str],
        form: Format | None,
        caller: Caller,
        settings: Settings,
    ) -> None:
        query = self._query = Query(stated, (*_ONCE, *_FLAGS, *_REPEATABLE), _REPEATABLE)
        flags = {name: query.one_of(name, ("true", "false")) == "true" for name in _FLAGS}
        self.dry_run = flags["dry_run"]
        name = query.text("name")
        query.matching("name", batches.is_batch_name(name or ""), batches.NAME_RULE)
        # A check needs no name, and that of another's batch would tell whether it exists.
        if not caller.sees(name or "") and (name is not None or not self.dry_run):
            query.refuse("name", "name", shown(name), f"must begin with {caller.ids_prefix}")
        on_error = query.one_of("on_error", ("abort", "skip")) or "abort"
        if on_error != "skip" and query.text("max_errors") is not None:
            query.refuse("max_errors", "max_errors", "", "needs on_error=skip")
        unit: Any = query.one_of("amount_unit", get_args(AmountUnit)) or "minor"
        columns = self._parsed("column", columns_of, query.texts("column")) or ()
        has_rows = query.text("expect_rows") is not None
        self.settings = ImportSettings(
            batch=name,
            again=flags["again"],
            allow_repeat=flags["allow_repeat"],
            all_remaining=flags["all_remaining"],
            delay=self._one("delay", length_of_time) or timedelta(0),
            on_error=on_error,
            max_errors=self._one("max_errors", most_errors),
            limits=Limits(
                rows=query.whole("expect_rows", default=1, most=_MOST_ROWS) if has_rows else None,
                totals=self._parsed("expect_total", each_sum, query.texts("expect_total")) or {},
                most_totals=self._parsed("max_total", sums_or_one, query.texts("max_total")) or {},
                most_amount=settings.max_amount,
                unit=unit,
            ),
        )
        delimiter = query.one_of("delimiter", tuple(DELIMITER_OF))
        decimal: Any = query.one_of("decimal", ("point", "comma")) or "point"
        id_from = query.text("id_from")
        attempt = query.whole("attempt", default=1, most=MOST_ATTEMPTS)
        query.check()
        self.reading = ImportOptions(
            format=form,
            delimiter=None if delimiter is None else DELIMITER_OF[delimiter],
            sheet=query.text("sheet"),
            columns=columns,
            id_from=() if id_from is None else tuple(map(str.strip, id_from.split(","))),
            attempt=attempt,
            amount_unit=unit,
            decimal=decimal,
            default_currency=query.text("currency"),
            ignore_extra=flags["ignore_extra"],
        )

    def _one(self, name: str, parse: Callable[[str], T]) -> T | None:
        text = self._query.text(name)
        return None if text is None else self._parsed(name, parse, text)

    def _parsed(self, name: str, parse: Callable[[Any], T], given: Any) -> T | None:
        try:
            return parse(given)
        except Unusable as error:
            self._query.refuse(name, name, "", error.rule)
            return None
