"""The operator's page on the emptied real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.page_door import PageDoor, a_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def page(redis_url: str) -> AsyncIterator[PageDoor]:
    async with a_page(redis_url) as door:
        yield door


@pytest.fixture
async def reader(page: PageDoor) -> PageDoor:
    """The page as one sees it who may read only."""
    await page.sign_in("read")
    return page
