"""The report of an archive in a real browser, from disk: what it shows, and that nobody's name does anything there.

Where there is no Chromium this is skipped; where ``FOREIGN_TOOLS`` names ``chromium``, it fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import html5lib
import pytest
from PIL import Image

from foreign_tools import missing
from licet_engine.evidence.report import derived
from report_contents import MadeUp

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
HOSTILE = (
    "<script>document.title='taken'</script>"
    "\"'><img src=x onerror=document.title='taken'><svg onload=document.title='taken'></title></style><style>*{display:none}</style>"
    "<meta http-equiv=refresh content='0;url=https://example.com/'>\u202e"
)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return found or missing("chromium", "no Chromium is installed (Debian: chromium-headless-shell)")


def written(folder: Path, made: MadeUp) -> Path:
    for name, chunks in derived(made):
        folder.joinpath(name).write_bytes(b"".join(chunks))
    return folder / "report.html"


def opened(chromium: str, file: Path, *options: str) -> tuple[str, list[str]]:
    """The page as the browser has it, and what it complained of."""
    profile = file.parent / "profile"
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ]
    # Nothing can be looked up; an attempt would be told on the console.
    quiet = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--no-first-run",
        "--disable-background-networking",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [*command, *quiet, *options, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=file.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.timeout(200)
def test_a_hostile_name_does_nothing_in_a_browser(chromium: str, tmp_path: Path) -> None:
    file = written(tmp_path, MadeUp(HOSTILE))
    shown, complaints = opened(chromium, file, "--dump-dom")
    tree = html5lib.parse(shown, namespaceHTMLElements=False)
    assert tree.find("head/title").text == "Evidence of northbank"
    assert not list(tree.iter("script")) + list(tree.iter("img"))
    assert len(list(tree.iter("style"))) == 1
    assert "<script>document.title='taken'</script>" in "".join(tree.itertext())
    assert complaints == []


@pytest.mark.timeout(200)
def test_the_page_is_drawn_with_its_own_style_and_pictures(chromium: str, tmp_path: Path) -> None:
    file = written(tmp_path, MadeUp(rounds=3))
    picture = tmp_path / "page.png"
    _, complaints = opened(chromium, file, f"--screenshot={picture}", "--window-size=1200,6000", "--hide-scrollbars")
    assert complaints == []
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    # The page's ground, and of the pictures the bars: allowed, denied, tried by others.
    assert {(0xF4, 0xF6, 0xF8), (0x0F, 0x76, 0x6E), (0xB4, 0x46, 0x0F), (0x6D, 0x3F, 0xC0)} <= colours


@pytest.mark.timeout(200)
def test_the_browser_refuses_another_style_and_any_script(chromium: str, tmp_path: Path) -> None:
    file = written(tmp_path, MadeUp())
    page = file.read_text("utf-8").replace("--page: #f4f6f8", "--page: #ff0000")
    file.write_text(re.sub("</main>", "<script>document.title='taken'</script></main>", page), "utf-8")
    shown, complaints = opened(chromium, file, "--dump-dom")
    assert len(complaints) == 2
    assert "<title>Evidence of northbank</title>" in shown
