"""Images from the network: not unless it is allowed, and within bounds."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from pictures import picture, seeing_folder
from test_data import ListStore, Rows, config_of

from yatt.data import images
from yatt.data.encoders import row_encoder
from yatt.data.fetch import fetch
from yatt.data.prompts import load_tokenizer
from yatt.errors import BadRow

ONE = picture()


class Handler(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            return self.redirect(self.path.removeprefix("/to/"))
        if self.path == "/loop":
            return self.redirect("/loop")
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        if self.path == "/slow":
            time.sleep(3)
        for _ in range(1000 if self.path == "/large" else 1):
            self.wfile.write(ONE)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone
            super().handle()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_what_is_there_comes(server):
    assert fetch(f"{server}/image.png") == ONE == fetch(f"{server}/to//image.png")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none", "status 404"),
        ("/loop", "over 3 redirects"),
        ("/to/file:///etc/passwd", "it leads to what is neither http nor https"),
        ("/to/ftp://host/a.png", "it leads to what is neither http nor https"),
        ("/large", "it has over 100000 bytes"),
    ],
)
def test_what_is_refused(server, path, words):
    with pytest.raises(BadRow, match=f"cannot be fetched: {words}"):
        fetch(f"{server}{path}", most=100_000)


def test_a_server_that_takes_too_long_is_not_waited_for(server):
    with pytest.raises(BadRow, match=r"nothing came for 0.2 s|did not come within 0.2 s"):
        fetch(f"{server}/slow", seconds=0.2)


def test_nobody_there():
    with pytest.raises(BadRow, match="no connection"):
        fetch("http://127.0.0.1:9/a.png")


def test_a_run_fetches_only_where_it_is_allowed_and_a_look_only_a_few(server, tmp_path, monkeypatch):
    model = seeing_folder(tmp_path)
    monkeypatch.setattr(images, "REMOTE_LOOKED", 2)
    rows = Rows([{"prompt": "<image>a", "image": f"{server}/{n}"} for n in range(4)])
    Handler.asked.clear()
    with pytest.raises(BadRow, match="is on the network"):
        row_encoder(config_of(model), load_tokenizer(model), rows, ListStore())(rows.row(0), 0, 0)
    assert Handler.asked == []
    allowed, store = config_of(model, fetch_images=True), ListStore()
    look = row_encoder(allowed, load_tokenizer(model), rows)
    assert all(look(rows.row(n), n, n).media == () for n in range(4))
    assert Handler.asked == ["/0", "/1"]
    draw = row_encoder(allowed, load_tokenizer(model), rows, store)
    assert draw(rows.row(3), 3, 3).media[0].patches == (1, 4, 6) and store.held == [ONE]
