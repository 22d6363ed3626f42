"""Pictures of a store's MLflow page, taken by a real browser: `python tests/screenshots.py [STORE] [FOLDER]`.

The newest finished baseline: its overview and pictures it recorded, as the page shows them. The newest study: overview,
trials, report and plots. Fails if the page does not show them. `make screenshots` does it for mlruns/.
"""

import base64
import sys
from pathlib import Path
from typing import Any

from browser import loaded_pictures, open_browser, save_screenshot

from dftrack.errors import StoreError
from dftrack.tracking import Page, RunRecord, Tracker, open_tracker, serve_ui

PICTURES = (
    "curves/loss.png", "curves/roc.png", "confusion/val.png", "grad-cam/test-dev.png", "robustness/curves.png",
    "calibration/test-dev.png", "slices/test-dev.png",
)  # fmt: skip
PAGES = {"report/evaluation.html": "How good is it", "errors/gallery.html": "The worst misses"}


def main(store: Path = Path("mlruns"), folder: Path = Path("screenshots")) -> None:
    """Take all pictures; prints where they lie."""
    tracker = open_tracker(store)
    with serve_ui(store) as ui, open_browser() as page:
        taken = [*of_baseline(tracker, ui, page, folder), *of_study(tracker, ui, page, folder)]
    for path in taken:
        print(path)


def of_baseline(tracker: Tracker, ui: Page, page: Any, folder: Path) -> list[Path]:
    """The newest finished baseline, if there is one."""
    try:
        run = tracker.latest_run(tags={"dftrack.kind": "baseline"})
    except StoreError:
        return []
    taken = [overview(run, ui, page, folder / "baseline.png", "Finished")]
    for name in PICTURES:
        show_artifact(run, ui, page, name)
        page.wait_for_function("Array.from(document.images).some(i => i.naturalWidth > 300)")
        assert loaded_pictures(page), f"the page shows no picture for {name}"
        taken.append(save_screenshot(page, folder / f"baseline-{name.replace('/', '-')}"))
    for name, text in PAGES.items():
        show_artifact(run, ui, page, name)
        show_page(page, name, text)
        taken.append(save_screenshot(page, folder / f"baseline-{Path(name).stem}.png"))
    return taken


def of_study(tracker: Tracker, ui: Page, page: Any, folder: Path) -> list[Path]:
    """The newest study, if there is one."""
    try:
        run = tracker.latest_run(status=None, tags={"dftrack.kind": "study"})
    except StoreError:
        return []
    taken = [overview(run, ui, page, folder / "study.png", run.status.capitalize())]
    for name, text in (
        ("study/report.html", "What won"),
        ("study/plots.html", "Study"),
        ("study/trials.csv", "trial 0"),
    ):
        show_artifact(run, ui, page, name)
        if name.endswith(".html"):
            show_page(page, name, text)
        else:
            page.get_by_text(text).first.wait_for(state="attached")
        taken.append(save_screenshot(page, folder / f"study-{Path(name).stem}.png"))
    page.goto(f"{ui.url}/#/experiments/{run.experiment_id}/runs")
    page.locator(f"a:has-text('{run.name}'):visible").first.wait_for()
    page.wait_for_timeout(3000)
    taken.append(save_screenshot(page, folder / "study-runs.png"))
    return taken


DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: "image/" + name.split(".").pop().replace("jpg", "jpeg")}));
    document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def drop_page(url: str, page: Any, picture: Path, target: Path) -> Path:
    """The page of `dftrack serve` at `url`, after a picture was dropped on it."""
    page.goto(url)
    page.evaluate(DROP, [picture.name, base64.b64encode(picture.read_bytes()).decode()])
    page.locator("#result").wait_for()
    page.wait_for_function("Array.from(document.images).every(i => i.naturalWidth > 0)")
    return save_screenshot(page, target)


def registry(store: Path, target: Path, model: str = "dftrack") -> Path:
    """The page of a registered model: its versions, and where the alias points."""
    with serve_ui(store) as ui, open_browser() as page:
        page.goto(f"{ui.url}/#/models/{model}")
        page.get_by_text("champion").first.wait_for()
        return save_screenshot(page, target)


def overview(run: RunRecord, ui: Page, page: Any, target: Path, status: str) -> Path:
    """The page of one run."""
    page.goto(ui.run_url(run.experiment_id, run.run_id))
    page.get_by_text(status).first.wait_for()
    return save_screenshot(page, target)


def show_page(page: Any, name: str, text: str) -> None:
    """Wait until the HTML artifact that was opened shows itself, and with this text."""
    page.wait_for_function("document.querySelector('iframe') !== null")
    page.wait_for_timeout(2000)
    shown = any(text in frame.locator("body").inner_text() for frame in page.frames[1:])
    assert shown, f"the page does not show {text!r} in {name}"


def show_artifact(run: RunRecord, ui: Page, page: Any, name: str) -> None:
    """Open an artifact as a person does: folder by folder."""
    page.goto(f"{ui.run_url(run.experiment_id, run.run_id)}/artifacts")
    page.reload()
    for part in name.split("/"):
        page.get_by_text(part, exact=True).first.click()
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))
