"""Scripts on the fake server: each text is translated once for a server, as a real one does.

`fakeredis` translates a script each time that it runs, and then looks for garbage in the whole of
its Lua. That was a quarter of what the tests on the fake took.
"""

from __future__ import annotations

from typing import Any, Final

from fakeredis.commands_mixins import scripting_mixin

_LUA: Final[Any] = scripting_mixin.LUA_MODULE
_COLLECT: Final = "collectgarbage()"


# fakeredis chooses the module of Lua when it is imported, so no type is known of it.
class _Runtime(_LUA.LuaRuntime):  # type: ignore[misc]
    """Lua that keeps what it has translated, and collects garbage at its own time."""

    def __init__(self, *_args: object, **_options: object) -> None:
        # The options are read where the object is made, before this.
        self._translated: dict[Any, Any] = {}

    def execute(self, code: Any, *args: Any) -> Any:
        if code == _COLLECT:
            return None
        if code not in self._translated:
            self._translated[code] = self.compile(code)
        return self._translated[code](*args)


def translate_once() -> None:
    """Let every fake server that is made from now on keep what it has translated."""
    _LUA.LuaRuntime = _Runtime
