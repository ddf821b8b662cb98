"""The OpenAPI document and the router: each names what the other does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support import described_api
from worker import errors
from worker.errors import RefundError
from worker.http import problems

if TYPE_CHECKING:
    from tests.support.api_door import Door


def test_the_document_is_valid_openapi() -> None:
    assert list(OpenAPIV31SpecValidator(described_api.DOCUMENT).iter_errors()) == []


async def test_the_document_and_the_router_have_the_same_operations(api: Door) -> None:
    application = web.Application()
    api.part.add(application)
    routed = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None and route.method != hdrs.METH_HEAD
    }
    # These two belong to every server.
    of_all = {("GET", "/health"), ("GET", "/ready")}
    assert routed | of_all == described_api.operations()
    for _, path in of_all:
        assert (await api.get(path, token="")).status == 200
    assert (await api.get("/openapi.json", token="")).json == described_api.DOCUMENT


def test_every_error_of_the_product_has_a_row_and_every_row_a_page() -> None:
    raised = {
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, RefundError)
    }
    rows = {kind for kind, _ in problems.TABLE}
    inherited = {errors.StoreRefused, errors.ProviderMismatch, errors.IllegalMove}
    assert raised - inherited == rows
    assert {kind for _, kind in problems.TABLE} <= {*problems.KINDS.values()}
    names = [kind for kind, _ in problems.TABLE]
    for index, one in enumerate(names):
        # A row under one of its base classes would never be reached.
        assert not any(issubclass(one, earlier) for earlier in names[:index]), one
