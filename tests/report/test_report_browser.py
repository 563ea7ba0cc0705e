"""report.html in headless Chromium: `make test-browser`."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from utils.report import __main__ as report

pytestmark = pytest.mark.browser
CONTAINER = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)  # run as root, without a GPU, with a small /dev/shm
QUIET = ("--disable-background-networking", "--no-first-run", "--hide-scrollbars")
START = ("--headless", *CONTAINER, *QUIET, "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0")
DARK, LIGHT = 0, 1  # Blink's preferredColorScheme
# This script runs inside a copy of the report and sends layout facts to the page that frames it.
PROBE = """<script>
addEventListener("load", () => {
  const folds = [...document.querySelectorAll("details")], inside = folds.map((e) => e.querySelector("table"));
  const place = (e) => document.querySelector(e).getBoundingClientRect();
  const first = {
    below: [place("table").bottom, place("img").top].filter((y) => y > innerHeight),
    folded: inside.map((e) => !e.checkVisibility()),
  };
  folds.forEach((e) => { e.open = true });
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1);
  const pictures = [...document.images];
  const letters = [...document.querySelectorAll("p, td, th, figcaption, summary, h1, h2")].map(
    (e) => parseFloat(getComputedStyle(e).fontSize));
  parent.postMessage(JSON.stringify({
    first,
    unfolded: inside.map((e) => e.checkVisibility()),
    width: innerWidth,
    pictures: pictures.length,
    empty: pictures.filter((p) => !p.complete || p.naturalWidth < 100 || p.width < 250).length,
    dark: pictures.filter((p) => p.currentSrc !== p.src).length,
    wide: wide.map((e) => e.tagName),
    scrolls: document.documentElement.scrollWidth > innerWidth,
    smallest: Math.min(...letters),
  }), "*");
});
</script>"""


@pytest.fixture(scope="session")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, "no Chromium found; on Debian or Ubuntu: apt-get update && apt-get install -y chromium"
    return path


@pytest.fixture(scope="session")
def page(reported_run, tmp_path_factory) -> Path:
    """Return the report of `reported_run` and of a copy whose arguments contain HTML code and long words."""
    folder = tmp_path_factory.mktemp("browser")
    other = folder / "<img src=x onerror=alert(1)>"
    shutil.copytree(reported_run, other)
    record = json.loads((other / "args.json").read_text())
    record["args"] |= {"tw": 80 * "long", "views": other.name}
    record["command"] = f"python '{other.name}.py' --views '{other.name}' --tw {80 * 'long'}"
    (other / "args.json").write_text(json.dumps(record))
    report.main([str(reported_run), str(other), "--output", str(folder / "out")])
    return folder / "out" / "report.html"


def browse(chromium: str, page: Path, *flags: str, width: int = 1200, height: int = 900) -> tuple[str, list[str]]:
    """Return what Chromium prints to stdout, and the lines of its console."""
    command = [chromium, *START, f"--window-size={width},{height}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def inspect(chromium: str, page: Path, width: int, scheme: int) -> dict:
    """Return the result of PROBE in a frame of the given width. A Chromium window is at least 500 px wide."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())  # remove the policy that forbids scripts
    page.with_name("probed.html").write_text(text.replace("</head>", PROBE + "</head>"))
    frame_page = page.with_name("around.html")
    frame_page.write_text(
        '<title></title><script>addEventListener("message", (e) => { document.title = e.data })</script>'
        f'<iframe src="probed.html" width="{width}" height="900" style="border: 0"></iframe>'
    )
    dom, _ = browse(chromium, frame_page, "--dump-dom", f"--blink-settings=preferredColorScheme={scheme}")
    return json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))


@pytest.mark.parametrize("scheme", [DARK, LIGHT], ids=["dark", "light"])
@pytest.mark.parametrize("width", [1200, 400])
def test_report_renders_without_overflow(chromium, page, width, scheme):
    inspection = inspect(chromium, page, width, scheme)
    figures = page.read_text().count("<figure>")
    assert inspection["width"] == width
    assert inspection["pictures"] == figures >= 10
    assert inspection["empty"] == 0
    assert inspection["dark"] == (figures if scheme == DARK else 0)
    assert inspection["wide"] == [] and not inspection["scrolls"]
    assert inspection["smallest"] >= 13


@pytest.mark.parametrize("width", [1200, 400])
def test_first_screen_shows_results_and_folds_arguments(chromium, page, width):
    inspection = inspect(chromium, page, width, LIGHT)
    assert inspection["first"] == {"below": [], "folded": [True]}
    assert inspection["unfolded"] == [True]


def test_console_is_empty_and_names_are_escaped(chromium, page):
    dom, console = browse(chromium, page, "--dump-dom")
    assert console == []
    assert "&lt;img src=x" in dom and "<img src=x" not in dom


def test_console_errors_are_captured(chromium, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefined_function()</script>")
    assert browse(chromium, broken, "--dump-dom")[1]


@pytest.mark.parametrize(("scheme", "bright"), [(DARK, False), (LIGHT, True)], ids=["dark", "light"])
def test_page_follows_preferred_colour_scheme(chromium, page, tmp_path, scheme, bright):
    picture = tmp_path / "page.png"
    browse(chromium, page, f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}")
    pixels = imread(picture)[:, :, :3]
    corner = pixels[:20, :20].mean()
    assert corner > 0.95 if bright else corner < 0.15
    letters = np.abs(pixels - pixels[0, 0]).max(axis=2) > 0.6  # far from the background
    assert letters.mean() > 0.005
