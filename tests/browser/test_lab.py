"""The explorers in a real browser: JupyterLab, headless Chromium. About 3 minutes, alone.

Runs where Chromium, jupyterlab and playwright are (`pip install playwright jupyterlab`, and your
system's chromium): python -m pytest tests/browser -m browser
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240_000  # milliseconds for a notebook to run
QUICK = 0.5  # seconds from a key to the picture, on an idle machine
SLOWER = float(os.environ.get("VALA_BROWSER_SLOWER", 1))  # on a busy one
# All cells are in the page, also those out of sight; no question about news.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false"},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over copies of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=lambda *_: {"results"})
    for name, chosen in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chosen))
    port = 18_000 + os.getpid() % 2_000
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--allow-root",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env=os.environ | {
                                  "PYTHONPATH": str(ROOT),
                                  "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                              })  # fmt: skip
    limit = time.time() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/api", timeout=2)
            break
        except OSError:
            assert time.time() < limit and server.poll() is None, "JupyterLab does not start"
            time.sleep(0.5)
    yield f"http://localhost:{port}"
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(lab, chromium):
    """A function that opens a notebook and runs all its cells; the errors that the page logs."""
    errors, pages = [], []

    def open_notebook(name: str):
        context = chromium.new_context(viewport={"width": 1500, "height": 1000})
        page = context.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.route("**/colab-badge.svg", lambda route: route.fulfill(  # no network is needed
            body="<svg xmlns='http://www.w3.org/2000/svg'/>", content_type="image/svg+xml"
        ))  # fmt: skip
        page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
        # Before its kernel is there, a notebook that is run asks which one.
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=PATIENCE)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return page

    open_notebook.errors = errors
    yield open_notebook
    for page in pages:
        page.context.close()


def shown(page, number: int = 0) -> str:
    return page.locator("img.widget-image").nth(number).get_attribute("src")


def seconds_until_it_changes(page, before: str, number: int = 0) -> float:
    start = time.perf_counter()
    while shown(page, number) == before:
        assert time.perf_counter() - start < 60, "the picture does not change"
        time.sleep(0.01)
    return time.perf_counter() - start


def own(errors: list[str]) -> list[str]:
    """Errors but for those of a server without extensions and news."""
    known = ("favicon", "404", "lsp", "ResizeObserver", "RANGE_NOT_SATISFIABLE")  # of a blob's end
    return [e for e in errors if not any(word in e for word in known)]


@pytest.mark.parametrize(
    ("notebook", "description"),
    [("10_vala_anchors", "prior a0"), ("27_fldm_explorer", "video's share a")],
)
def test_a_slider_moves_the_picture_at_once(opened, notebook, description, tmp_path):
    page = opened(notebook)
    page.wait_for_selector("img.widget-image", timeout=PATIENCE)
    page.wait_for_function(
        "document.querySelectorAll('.jp-InputArea-prompt').length && "
        "![...document.querySelectorAll('.jp-InputArea-prompt')].some(p => p.innerText == '[*]:')",
        timeout=PATIENCE,
    )
    row = page.locator(".widget-slider", has_text=description)
    handle = row.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    taken = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowLeft"):
        before = shown(page)
        handle.press(key)
        taken.append(seconds_until_it_changes(page, before))
    page.screenshot(path=tmp_path / f"{notebook}.png")
    assert min(taken) < QUICK * SLOWER, taken
    panel = page.locator(".widget-hbox").filter(has=page.locator("img.widget-image")).first
    assert panel.bounding_box()["height"] < 900  # the plot is on screen while a slider moves
    assert not own(opened.errors)


def test_the_quickstart_panel_edits(opened, tmp_path):
    page = opened("00_quickstart")
    button = page.get_by_role("button", name="edit", exact=True)
    button.wait_for(timeout=PATIENCE)
    for description, value in {"steps": "2", "frames, at most": "2"}.items():
        box = page.locator(".widget-slider", has_text=description).locator(".widget-readout")
        box.click()
        box.fill(value)
        box.press("Enter")
    button.click()
    page.get_by_text("done in").wait_for(timeout=PATIENCE)
    assert shown(page).startswith("blob:")
    video = page.locator("video")
    page.wait_for_function("document.querySelector('video').readyState >= 2", timeout=PATIENCE)
    assert video.evaluate("v => v.videoWidth") == 512
    page.screenshot(path=tmp_path / "quickstart.png")
    assert not own(opened.errors)


def test_the_pages_of_study_and_gallery_open_without_an_error(chromium, tmp_path):
    """Both are static: no request leaves the page."""
    import torch

    from vala_research import write_clip
    from vala_research.evaluation.study.page import write_study
    from vala_research.evaluation.study.trials import draw_study, read_pairs

    lines = ["prompt,a,video_a,b,video_b"]
    for i in range(3):
        for side in "ab":
            write_clip(tmp_path / f"{side}{i}.mp4", torch.rand(4, 3, 32, 32), 8.0)
        lines.append(f"a star,ours,a{i}.mp4,theirs,b{i}.mp4")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    drawn = draw_study(read_pairs(tmp_path / "pairs.csv"), 0.3, 0)
    page_file, key = write_study(drawn, tmp_path / "s")
    page, errors, requests = chromium.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.resolve().as_uri())
    page.wait_for_load_state("load")
    page.screenshot(path=tmp_path / "study.png")
    assert not errors
    assert not [url for url in requests if url.startswith("http")]
    assert page.locator("video").count() >= 1 or page.locator("input, button").count() >= 1
    assert json.loads(key.read_text())
    page.close()
