"""`yatt watch`: a page on this machine that follows runs. It is served on the loopback interface alone, and every
address has a token in it, so that no other user of the machine can read it."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from yatt.errors import ConfigError, YattError
from yatt.faces.compare import MOST_RUNS, compared
from yatt.faces.live import LiveRun
from yatt.faces.page import page
from yatt.faces.report import check_run
from yatt.faces.rundir import RunDirectory
from yatt.faces.runs import HEAD, Glance, names_of

PORT = 8420
MOST_OPEN = 8
"""Runs whose rows are kept in memory; the one that was asked for least lately goes."""
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'",
}
Answer = Callable[[Request], Response]


def watch(runs: Sequence[Path], *, everything: bool, port: int | None, once: bool) -> int:
    """Serve the page until Ctrl-C, or with `once` until a page was served; returns the exit status. With `everything`
    the one folder given, `runs` by default, holds the runs. Raises ConfigError where there is nothing to serve, or no
    port to serve it at."""
    folder = (list(runs) or [Path("runs")])[0] if everything else None
    if folder is not None and (len(runs) > 1 or not folder.is_dir()):
        raise ConfigError(f"--all takes one folder of runs; {' '.join(map(str, runs)) or folder} is not one")
    if folder is None and not runs:
        raise ConfigError("yatt watch takes runs to follow; give runs/NAME, or --all for every run in runs/")
    for run in runs if folder is None else ():
        check_run(RunDirectory(run))
    site = Site(secrets.token_urlsafe(16), folder=folder, runs=runs, once=once)
    with _listening(port) as listener:
        server = uvicorn.Server(
            uvicorn.Config(site.app, log_level="error", lifespan="off", timeout_graceful_shutdown=2)
        )
        site.stop = lambda: setattr(server, "should_exit", True)
        site.warm()
        for line in _words(site, listener.getsockname()[1], once=once):
            print(line, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
    return 0


def _listening(port: int | None) -> socket.socket:
    """A socket at this port of the loopback interface; where none is asked for, at the usual one or a free one."""
    wanted = PORT if port is None else port
    try:
        return socket.create_server(("127.0.0.1", wanted))
    except (OSError, OverflowError) as error:
        if port is not None:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is beyond 65535"
            raise ConfigError(f"--port={port} cannot be served: {why}; use --port=0 for any free one") from None
    return socket.create_server(("127.0.0.1", 0))


def _words(site: Site, port: int, *, once: bool) -> list[str]:
    """The address, and how to reach it from another machine."""
    lines = [
        f"http://127.0.0.1:{port}/{site.token}/{site.start()}",
        f"from another machine, first: ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}",
    ]
    return [*lines, "ends after one page" if once else "Ctrl-C ends it"]


class Site:
    """The addresses there are, all below the token: the list of runs, one run's page and what it asks for, and runs
    beside each other. Addresses within pages are relative."""

    def __init__(self, token: str, *, folder: Path | None, runs: Sequence[Path], once: bool = False) -> None:
        self.token = token
        self.stop: Callable[[], object] = bool
        self._folder, self._given, self._once = folder, list(runs), once
        self._glances: dict[Path, Glance] = {}
        self._open: dict[Path, LiveRun] = {}
        pages = {
            "/{token}/": self._list,
            "/{token}/compare": self._compare,
            "/{token}/runs/{name}/": self._page,
            "/{token}/runs/{name}/parts": self._parts,
            "/{token}/runs/{name}/devices": self._devices,
            "/{token}/runs/{name}/conversations": self._conversations,
        }
        routes = [Route(path, self._guarded(answer), methods=["GET"]) for path, answer in pages.items()]
        self.app = Starlette(routes=routes, middleware=[Middleware(GZipMiddleware, compresslevel=4)])

    def start(self) -> str:
        """Where to begin, below the token: the page of the only run, or the list."""
        return f"runs/{next(iter(self._runs()))}/" if self._folder is None and len(self._given) == 1 else ""

    def warm(self) -> None:
        """Read what the first page shows, so that it opens at once."""
        for name in list(self._runs())[:1] if self.start() else ():
            self._run(name).page()

    def _guarded(self, answer: Answer) -> Answer:
        """The answer to who has the token; to all others there is nothing here."""

        def guarded(request: Request) -> Response:
            token = request.path_params["token"].encode()
            if not secrets.compare_digest(token, self.token.encode()):
                return PlainTextResponse(
                    "nothing is here; the address is the one that yatt watch printed", 404, HEADERS
                )
            try:
                response = answer(request)
            except YattError as error:
                response = PlainTextResponse(str(error), 400)
            except FileNotFoundError:
                response = PlainTextResponse("no run of this name is watched", 404)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return guarded

    def _runs(self) -> dict[str, Path]:
        """The runs there are now, by name."""
        if self._folder is None:
            return dict(zip(names_of(self._given), self._given, strict=True))
        held = [path for path in sorted(self._folder.iterdir()) if (path / "config.yaml").is_file()]
        return {path.name: path for path in held}

    def _run(self, name: str) -> LiveRun:
        path = self._runs().get(name)
        if path is None:
            raise FileNotFoundError(name)
        run = self._open.pop(path, None) or LiveRun(name, path)
        self._open[path] = run
        for oldest in list(self._open)[:-MOST_OPEN]:
            self._open.pop(oldest, None)
        return run

    def _whole(self, template: str, title: str, **values: Any) -> Response:
        return self._served(page(template, title=f"{title} · YATT", live=True, **values))

    def _served(self, text: str) -> Response:
        """A page, which says itself what it may do. The last one, where only one is to be served."""
        response = HTMLResponse(text, background=BackgroundTask(self.stop) if self._once else None)
        response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        return response

    def _list(self, request: Request) -> Response:
        shown = []
        for name, path in self._runs().items():
            glance = self._glances.setdefault(path, Glance(path))
            shown.append({"name": name, "facts": glance.facts()})
        return self._whole("runs.html", "Runs", runs=shown, head=HEAD)

    def _page(self, request: Request) -> Response:
        return self._served(self._run(request.path_params["name"]).page(once=self._once))

    def _parts(self, request: Request) -> Response:
        since = request.query_params.get("since", "")
        run = self._run(request.path_params["name"])
        return JSONResponse(run.parts(int(since) if since.isdecimal() else 0))

    def _devices(self, request: Request) -> Response:
        step = request.query_params.get("step", "")
        run = self._run(request.path_params["name"])
        return HTMLResponse(run.devices(int(step) if step.isdecimal() else None))

    def _conversations(self, request: Request) -> Response:
        return HTMLResponse(self._run(request.path_params["name"]).conversations(request.query_params))

    def _compare(self, request: Request) -> Response:
        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if not 1 <= len(names) <= MOST_RUNS:
            raise ConfigError(f"{len(names)} runs cannot be compared; choose 1 to {MOST_RUNS}")
        told = {name: self._run(name).told() for name in names}
        return self._whole("compare.html", "Compared", names=names, body=compared(told) or Markup("Nothing yet."))
