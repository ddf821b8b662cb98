"""Renders the templates. Every value is text: it is escaped, and control characters are shown."""

from __future__ import annotations

from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from worker.http.page.charts import HEIGHT, WIDTH
from worker.http.page.pagewords import UNVERIFIED, amount_of, on_page
from worker.http.page.refusals import Refusal
from worker.http.page.sessions import Session
from worker.model.request import is_refund_id
from worker.store.audit import Deed
from worker.wording.batches import state_of_batch
from worker.wording.callbacks import callback_in_words
from worker.wording.refunds import result_of, state_of
from worker.wording.values import moment, plain

PATH: Final = "/page"
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src"
        " 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    # With no-referrer a browser would send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_TARGETS: Final = {
    "batches": ("batch ", "import"),
    "refunds": ("cancel", "retry", "recheck", "resolve as "),
}
"""How the actions begin that are about a refund or a batch, by its view."""
STATIC: Final = {
    "page.css": "text/css",
    "live.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def _shown(value: object) -> object:
    """Return a value as it is written into a page, before it is escaped."""
    return value if isinstance(value, Markup) else plain(value)


def _target_view(deed: Deed) -> str | None:
    """Return the address of what an action was about, None if it has none."""
    views = (each for each, actions in _TARGETS.items() if deed.action.startswith(actions))
    view = next(views, None) if is_refund_id(deed.target) else None
    return None if view is None else f"{PATH}/{view}/{quote(deed.target, safe=':')}"


def _grouped(number: int) -> str:
    return f"{number:,}"


def _lines(text: str) -> Markup:
    """Return a text of several lines, escaped, with its line ends."""
    return Markup("\n").join(plain(line) for line in text.splitlines())


class Renderer:
    """Renders templates to responses."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=PackageLoader("worker.http.page"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "moment": moment,
            "amount": amount_of,
            "state": state_of,
            "result": result_of,
            "batch_state": state_of_batch,
            "grouped": _grouped,
            "callback": callback_in_words,
            "lines": _lines,
            "on_page": on_page,
            "target_view": _target_view,
        }
        self._templates.globals |= {"width": WIDTH, "height": HEIGHT, "unverified": UNVERIFIED}

    def page(
        self,
        name: str,
        session: Session | None,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        refusal: Refusal | None = None,
        here: str = "",
        **values: Any,
    ) -> web.Response:
        """Return a page; without a session it has no navigation.

        With a `refusal` it answers a form that was not followed, and `here` is the address of the
        view.
        """
        text = self._templates.get_template(f"{name}.html").render(
            session=session, view=name, refusal=refusal, here=here, **values
        )
        code = status if refusal is None else refusal.status
        return web.Response(text=text, content_type="text/html", status=code.value)


def static_file(name: str) -> web.Response:
    """Return a file that the pages use. Raises `HTTPNotFound`."""
    if name not in STATIC:
        raise web.HTTPNotFound
    body = (resources.files("worker.http.page") / "static" / name).read_bytes()
    return web.Response(body=body, content_type=STATIC[name], charset="utf-8")
