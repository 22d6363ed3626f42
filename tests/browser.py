"""A real browser for tests: the machine's own Chromium, headless, driven by playwright; nothing is downloaded."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
PATIENCE = 90_000  # ms; the MLflow page loads megabytes of script, on cores that others use as well


def chromium() -> str:
    """The path of a Chromium; skips the test, saying so, where there is none."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(CHROMIUM_NAMES)})")
    return path


@contextmanager
def open_browser(width: int = 1500, height: int = 1000) -> Iterator[Any]:
    """A fresh page of a fresh browser (playwright's Page); requests to other machines are cut off."""
    executable = chromium()
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with tempfile.TemporaryDirectory(prefix="dftrack-browser-") as profile, sync_api.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            args=list(ARGUMENTS),
            viewport={"width": width, "height": height},
            timeout=PATIENCE,
        )
        context.set_default_timeout(PATIENCE)
        context.route(re.compile(r"^https?://(?!127\.0\.0\.1|localhost)"), lambda route: route.abort())
        try:
            yield context.pages[0] if context.pages else context.new_page()
        finally:
            context.close()


def loaded_pictures(page: Any) -> list[tuple[int, int]]:
    """Width and height of every picture that the page really shows (broken ones have no size)."""
    sizes = page.evaluate("Array.from(document.images).map(i => [i.naturalWidth, i.naturalHeight, i.src])")
    return [(width, height) for width, height, source in sizes if width > 0 and "static-files" not in source]


def save_screenshot(page: Any, target: Path) -> Path:
    """Put a PNG of what the page shows at `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(target), timeout=PATIENCE)
    return target
