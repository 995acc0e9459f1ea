"""The site is built of the pages as they are, asks no other host for anything, and has every setting and command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

from yatt.config.load import describe

pytestmark = pytest.mark.slow
FETCHED = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*\srel="?(?:stylesheet|icon|preload)[^>]*>')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(out)


def test_every_page_is_there_and_in_the_navigation(site):
    start = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
        assert page.stem == "index" or f'href="{page.stem}.html"' in start, f"{page.name} is in no navigation"


def test_nothing_comes_from_another_host(site):
    for page in site.rglob("*.html"):
        for match in FETCHED.finditer(page.read_text()):
            assert "//" not in match[0].replace("http://www.w3.org", ""), f"{page.name}: {match[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", style.read_text()), style.name


def test_every_setting_and_command_is_in_the_reference(site):
    page = (site / "reference" / "settings.html").read_text()
    missing = [setting.name for setting in describe() if f"<code>{setting.name}</code>" not in page]
    assert not missing
    page = (site / "reference" / "commands.html").read_text()
    for word in ("yatt train", "yatt launch", "--slurm", "--push", "--devices"):
        assert word in page
    assert "compares siblings" in (site / "reference" / "python.html").read_text()


def test_lists_are_lists(site):
    """Python-Markdown wants four blanks where CommonMark takes two or three."""
    for page in site.glob("*.html"):
        inside = re.search(r"<p>(?:(?!</p>).)*\n(?:- |\d+\. )[^<]*", page.read_text(), re.DOTALL)
        assert inside is None, f"{page.name}: {inside[0][:200] if inside else ''}"
    page = (site / "architecture.html").read_text()
    assert (
        page.count("<ol>") >= 1 and "<li>\n<p><strong>rollout</strong>" in page
    ) or "<li><strong>rollout</strong>" in page
