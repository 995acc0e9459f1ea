"""HTML of the report, the live page and the plan: templates of `templates/`, look and behaviour of `static/`.

Everything a template is given is text and is escaped, but what another template made."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_STATIC = Path(__file__).parent / "static"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("yatt.faces"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Markup:
    """A part of a page, for other templates to take as it is."""
    return Markup(_environment().get_template(template).render(**values).strip())


def table(
    head: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    kind: str = "",
    wrapped: Sequence[int] = (),
) -> Markup:
    """A card with a table. A row has `cells`, and may have a `class` and a `span` of its one cell; `wrapped` are the
    columns whose text may be long."""
    filled = [{"class": "", "span": 0, **row} for row in rows]
    return render("table.html", head=head, rows=filled, title=title, kind=kind, wrapped=wrapped)


def page(
    template: str, *, title: str, scripts: tuple[str, ...] = ("page.js",), live: bool = False, **values: Any
) -> str:
    """A whole page with everything in it. It may run these scripts and no other, and load nothing; a `live` one may ask
    where it came from."""
    script = "".join(_text(name) for name in scripts)
    return render(
        template, title=title, style=Markup(_text("page.css")), script=Markup(script), policy=policy(script, live=live),
        live=live, **values,
    )  # fmt: skip


def policy(script: str, *, live: bool) -> str:
    """The Content-Security-Policy of a page with this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "connect-src": "'self'" if live else "'none'",
        "form-action": "'self'" if live else "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{what} {where}" for what, where in allowed.items())


@cache
def _text(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
