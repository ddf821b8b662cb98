"""What the bench and the proofs hold open for the length of a `with`."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Opened:
    """Something of several parts, which are entered one by one and closed in the reverse order.

    If a part fails to open, those before it are closed.
    """

    _stack: ExitStack

    def _enter_parts(self, stack: ExitStack) -> None:
        """Enter each part into the stack."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._enter_parts(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
