"""The HTTP API on the emptied real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.api_door import Door, a_door

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Door]:
    async with a_door(redis_url) as door:
        yield door
