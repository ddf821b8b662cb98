"""The shops of one installation: endpoints of callbacks, each a process with a log."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ops.lab.prove.rig import Rig, RigError, Worker
from worker.sandbox.installation import environment
from worker.sandbox.ports import free_port

Ways = Mapping[str, float]
OK: Final[Ways] = {"ok": 1}
NEVER: Final = 3
"""The place in a run's plan of the refund that the picky shop refuses for ever."""


@dataclass(frozen=True, kw_only=True)
class Shop:
    """One endpoint: how it answers while faults last, and afterwards."""

    name: str
    ways: Ways = field(default_factory=lambda: OK)
    afterwards: Ways = field(default_factory=lambda: OK)
    timeout_seconds: int = 1
    in_flight: int = 4
    narrow: bool = False
    """Whether it wants only the refunds of a run whose ids begin in one way."""

    @property
    def alive(self) -> bool:
        """Return whether it accepts callbacks at the end."""
        return "ok" in self.afterwards


SHOPS: Final = (
    Shop(name="steady", timeout_seconds=5, in_flight=8),
    Shop(name="failing", ways={"ok": 5, "error": 3, "busy": 1, "moved": 1}),
    Shop(name="hanging", ways={"ok": 6, "hang": 4}),
    Shop(name="resetting", ways={"ok": 5, "reset": 5}),
    Shop(name="late", ways={"ok": 6, "late": 4}),
    Shop(name="gone", ways={"ok": 8, "gone": 2}),
    Shop(name="picky", ways={**OK, "never": NEVER}, afterwards={**OK, "never": NEVER}, in_flight=1),
    Shop(name="dying", timeout_seconds=2),
    # Slots and connections of its own are what keeps this one from slowing the others.
    Shop(name="hung", ways={"hang": 1}, afterwards={"hang": 1}, timeout_seconds=15, in_flight=8),
    Shop(name="narrow", narrow=True),
)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One callback as a shop received it; `held` if the shop answered that it keeps it."""

    at: float
    webhook_id: str
    verified: bool
    type: str
    member: str
    version: int
    status: str
    path: str
    way: str
    held: bool


class Shops:
    """The shops of one installation. Their processes end with it."""

    def __init__(self, rig: Rig, narrow: str, shops: Sequence[Shop] = SHOPS) -> None:
        self._rig, self._narrow, self._shops = rig, narrow, shops
        self._folder = rig.folder / "shops"
        self._folder.mkdir()
        self._ports = {shop.name: free_port() for shop in shops}
        self._processes: dict[str, Worker] = {}
        self._secrets: dict[str, list[str]] = {}

    @property
    def alive(self) -> list[Shop]:
        """The shops that accept callbacks at the end."""
        return [shop for shop in self._shops if shop.alive]

    @property
    def settings(self) -> dict[str, str]:
        """The variables that name the endpoints and their secrets to a worker."""
        return {
            "REFUNDS_CALLBACKS_FILE": str(self._folder / "callbacks.toml"),
            "REFUNDS_SECRETS_DIR": str(self._folder),
        }

    def open(self, *, calm: bool) -> None:
        """Write the endpoints and start every shop; a calm one accepts everything."""
        for shop in self._shops:
            self._secrets[shop.name] = [self._a_secret()]
            self.sign(shop.name, self._secrets[shop.name])
            self.know(shop.name, self._secrets[shop.name])
            self._answer(shop, OK if calm else shop.ways)
            self.start(shop.name)
        text = "\n".join(self._endpoint(shop) for shop in self._shops)
        (self._folder / "callbacks.toml").write_text(text)

    def _a_secret(self) -> str:
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self._rig.secrets.append(secret)
        return secret

    def _endpoint(self, shop: Shop) -> str:
        lines = {
            "name": shop.name,
            "url": f"http://127.0.0.1:{self._ports[shop.name]}/callbacks",
            "timeout_s": shop.timeout_seconds,
            "in_flight": shop.in_flight,
            "allow_private": True,
            **({"ids": self.wanted(shop)} if shop.narrow else {}),
        }
        return "\n".join(
            ["[[endpoints]]", *(f"{key} = {json.dumps(one)}" for key, one in lines.items())]
        )

    def wanted(self, shop: Shop) -> str:
        """Return what the ids begin with that a shop wants."""
        return self._narrow if shop.narrow else ""

    # What may be changed while it runs

    def start(self, name: str) -> None:
        """Start a shop, and wait until it listens."""
        command = [sys.executable, "-m", "ops.lab.prove.shop", str(self._ports[name])]
        self._processes[name] = self._rig.launch_beside(
            [*command, str(self._folder), name], environment({})
        )
        self._rig.until(partial(self._listens, name), f"the shop {name} listens")

    def _listens(self, name: str) -> bool:
        if not self._processes[name].alive:
            raise RigError(f"the shop {name} ended at its start: see its log")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._ports[name])) == 0

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._processes[name].process.kill()
        self._processes[name].process.wait()

    def settle(self) -> None:
        """Let every shop answer as it does once faults are over, and start those that died."""
        for shop in self._shops:
            self._answer(shop, shop.afterwards)
            if not self._processes[shop.name].alive:
                self.start(shop.name)

    def _answer(self, shop: Shop, ways: Ways) -> None:
        self._write(f"{shop.name}.ways", json.dumps(ways))

    def new_secrets(self) -> None:
        """Draw a second secret for every shop; no one signs with it yet."""
        for each in self._secrets.values():
            each.append(self._a_secret())

    def sign_with(self, *places: int) -> None:
        """Let workers that start from now on sign with these secrets of each shop."""
        for name, each in self._secrets.items():
            self.sign(name, [each[place] for place in places])

    def know_only(self, place: int) -> None:
        """Let every shop know one of its secrets."""
        for name, each in self._secrets.items():
            self.know(name, [each[place]])

    def sign(self, name: str, lines: Sequence[str]) -> None:
        """Write the secrets that sign for a shop."""
        self._write(f"callback_{name}", "\n".join(lines))

    def know(self, name: str, lines: Sequence[str]) -> None:
        """Write the secrets that a shop knows."""
        self._write(f"{name}.keys", "\n".join(lines))

    def _write(self, name: str, text: str) -> None:
        # A shop may read it at any time: it is never half written.
        half = self._folder / f"{name}.half"
        half.write_text(text)
        os.replace(half, self._folder / name)  # noqa: PTH105 - as atomic as it says

    def arrivals(self, name: str) -> list[Arrival]:
        """Return what a shop received, in the order in which it did."""
        path = Path(self._folder / f"{name}.jsonl")
        if not path.exists():
            return []
        lines: list[Any] = [json.loads(line) for line in path.read_text().splitlines()]
        return [Arrival(**line) for line in lines]
