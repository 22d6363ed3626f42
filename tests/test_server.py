"""The server judges pictures for this machine's own pages and programs, and turns all else away in plain words."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow.pyfunc.scoring_server
import numpy as np
import pytest
from browser import chromium, open_browser
from PIL import Image
from screenshots import drop_page

from dftrack.data.pictures import decode, encode_jpeg, encode_png
from dftrack.errors import SettingError
from dftrack.guard import OWN_NAMES, Limits, names_for
from dftrack.judging import judge_and_explain
from dftrack.learning.detector import Detector
from dftrack.runtime import catch_stop_requests
from dftrack.server import listen, make_app, serve
from dftrack.tracking import open_tracker
from tests.test_cli import Terminal
from tests.test_predict import make_detector

SHOTS = os.environ.get("SCREENSHOTS")  # a folder that keeps the screenshots
LIMITS = Limits(body_bytes=300_000, pictures=5, pixels=1_000_000, seconds=20)


@dataclass(frozen=True)
class Answered:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def said(self) -> dict:
        return json.loads(self.body)


def ask(url: str, body: bytes | None = None, kind: str = "image/png", **headers: str) -> Answered:
    request = urllib.request.Request(url, data=body, headers={name.replace("_", "-"): v for name, v in headers.items()})
    if body is not None:
        request.add_header("content-type", kind)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answered(answer.status, answer.read(), answer.headers)
    except urllib.error.HTTPError as error:
        return Answered(error.code, error.read(), error.headers)


@contextmanager
def serving(detector: Detector, judge=None, limits: Limits = LIMITS) -> Iterator[str]:
    judge = judge or partial(judge_and_explain, detector)
    app = make_app(detector, judge, "run abc <b>&\"'", limits=limits)
    with listen(port=0) as taken, serve(taken, app) as running:
        yield running.url


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector()


@pytest.fixture(scope="module")
def url(detector: Detector) -> Iterator[str]:
    with serving(detector) as address:
        yield address


def picture(seed: int = 0, size: int = 24) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


class Slow:
    """A judge that says when it has begun, and waits until it is let go."""

    def __init__(self) -> None:
        self.going, self.begun = threading.Event(), threading.Semaphore(0)

    def __call__(self, content: bytes) -> dict[str, object]:
        self.begun.release()
        self.going.wait(30)
        return {"slow": True}


def flat(width: int, height: int, kind: str = "PNG") -> bytes:
    """A small file of many pixels."""
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, kind)
    return content.getvalue()


def inputs(*pictures: bytes) -> bytes:
    return json.dumps({"inputs": [base64.b64encode(content).decode() for content in pictures]}).encode()


def test_one_picture_gets_score_verdict_probability_and_a_heat_map(url: str, detector: Detector) -> None:
    content = picture()
    answer = ask(f"{url}/judge", content)
    [verdict] = detector.judge([content])
    said = answer.said
    assert answer.status == 200
    assert (said["score"], said["verdict"]) == (pytest.approx(verdict.score, abs=1e-6), verdict.verdict)
    assert said["probability"] == pytest.approx(verdict.probability, abs=1e-6)
    assert said["threshold"] == detector.threshold
    start, _, encoded = said["heat_map"].partition(",")
    assert start == "data:image/png;base64"
    assert decode(base64.b64decode(encoded)).shape == (detector.image_size, detector.image_size, 3)


def test_mlflows_own_protocol_scores_base64_pictures_with_the_same_numbers(url: str, detector: Detector) -> None:
    contents = [picture(1), encode_jpeg(decode(picture(2))), picture(3)[:200]]
    answer = ask(f"{url}/invocations", inputs(*contents), "application/json; charset=utf-8")
    assert answer.status == 200
    for row, verdict in zip(answer.said["predictions"], detector.judge(contents), strict=True):
        assert row["status"] == verdict.status and row["verdict"] == verdict.verdict
        assert row["score"] == (None if verdict.score is None else pytest.approx(verdict.score, abs=1e-6))
        assert row["probability"] == (None if verdict.score is None else pytest.approx(verdict.probability, abs=1e-6))
    as_url = json.dumps({"instances": "data:image/png;base64," + base64.b64encode(contents[0]).decode()}).encode()
    assert ask(f"{url}/invocations", as_url, "application/json").said["predictions"] == answer.said["predictions"][:1]
    assert ask(f"{url}/ping").status == 200
    assert ask(f"{url}/version").body.decode() == mlflow.__version__


def test_one_long_picture_among_short_ones_takes_memory_once(url: str) -> None:
    """MLflow's own "inputs" become an array as wide as the longest text, for every picture: 16 MiB became 8 GB."""
    long = picture() + bytes(150_000)  # what follows the end of a PNG is not of the picture
    tracemalloc.start()
    try:
        answer = ask(f"{url}/invocations", inputs(long, *[picture()] * 4), "application/json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 200 and len(answer.said["predictions"]) == 5
    assert peak < 5e6, f"{peak / 1e6:.0f} MB for a request of 0.3 MB"


def test_requests_at_the_same_time_get_the_numbers_that_they_get_alone(url: str) -> None:
    pictures = [picture(seed) for seed in range(8)]
    alone = [ask(f"{url}/judge", content).body for content in pictures]
    rows = ask(f"{url}/invocations", inputs(picture()), "application/json").body

    def both(content: bytes) -> list[bytes]:
        asked = ask(f"{url}/invocations", inputs(picture()), "application/json")
        return [ask(f"{url}/judge", content).body for _ in range(5)] + [asked.body]

    with ThreadPoolExecutor(7) as pool:  # with an eighth at times one would be turned away
        told = list(pool.map(both, pictures))
    assert told == [[body] * 5 + [rows] for body in alone]


@pytest.mark.parametrize("text", ["{path}", "file://{path}", "data:image/png;base64,{path}", "/etc/hostname", ""])
def test_a_path_is_never_opened(url: str, tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(picture())
    for given in ([text.format(path=path)], [base64.b64encode(picture()).decode(), text.format(path=path)]):
        answer = ask(f"{url}/invocations", json.dumps({"inputs": given}).encode(), "application/json")
        assert answer.status == 422 and "paths are not opened" in answer.said["hint"], answer.body
        assert f"input {len(given)} is not base64" in answer.said["error"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "words"),
    [
        ("judge", b"", "image/png", 415, "no JPEG, PNG or WebP"),
        ("judge", b"GIF89a" + bytes(99), "image/gif", 415, "no JPEG, PNG or WebP"),
        ("judge", picture()[:100], "image/png", 422, "truncated or damaged"),
        ("judge", picture(), "multipart/form-data; boundary=x", 415, "not as multipart/form-data"),
        ("judge", bytes(300_001), "image/png", 413, "300001 bytes"),
        ("invocations", inputs(picture()), "text/csv", 415, "not as text/csv"),
        ("invocations", b"{", "application/json", 400, "not JSON"),
        ("invocations", b"[" * 200_000, "application/json", 400, "not JSON"),
        ("invocations", b"\xff", "application/json", 400, "not JSON"),
        ("invocations", b"[]", "application/json", 422, "no list of pictures"),
        ("invocations", b'{"inputs": []}', "application/json", 422, "no list of pictures"),
        ("invocations", b'{"inputs": [1]}', "application/json", 422, "input 1 is not base64"),
        ("invocations", b'{"inputs": {"a": 1}}', "application/json", 422, "no list of pictures"),
        ("invocations", b'{"inputs": ["a"], "params": {}}', "application/json", 422, "no list of pictures"),
        ("invocations", b'{"dataframe_split": {"data": ["a"]}}', "application/json", 422, "no list of pictures"),
        ("invocations", inputs(*[picture()] * 6), "application/json", 413, "6 pictures"),
        ("invocations", inputs(b"text"), "application/json", 422, "input 1 is not base64"),
        ("judge", flat(1100, 1000), "image/png", 413, "1.1 million pixels"),
        ("invocations", inputs(*[flat(600, 600)] * 3), "application/json", 413, "1.1 million pixels"),
        ("invocations", inputs(*[flat(600, 600, "JPEG")] * 3), "application/json", 413, "1.1 million pixels"),
        ("invocations", inputs(*[flat(600, 600, "WEBP")] * 3), "application/json", 413, "1.1 million pixels"),
        ("", b"x", "image/png", 405, "does not take POST"),
        ("docs", None, "", 404, "nothing at /docs"),
        ("openapi.json", None, "", 404, "nothing at"),
        ("judge", None, "", 405, "does not take GET"),
    ],
)
def test_what_is_no_picture_or_too_much_is_refused_with_a_status_and_a_reason_in_json(
    url: str, path: str, body: bytes | None, kind: str, status: int, words: str
) -> None:
    answer = ask(f"{url}/{path}", body, kind)
    assert answer.status == status, answer.body
    assert words in answer.said["error"] and "Traceback" not in answer.body.decode()


def test_pages_of_other_places_and_other_names_are_turned_away(url: str) -> None:
    port = url.rpartition(":")[2]
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "origin": url},
        {"host": f"evil.example:{port}"},
        {"host": f"127.0.0.1.evil.example:{port}", "origin": f"http://127.0.0.1.evil.example:{port}"},
    ):
        answer = ask(f"{url}/judge", picture(), **headers)
        assert answer.status == 403, headers
        assert "access-control-allow-origin" not in answer.headers
    assert ask(f"{url}/", host="evil.example").status == 403, "DNS rebinding is let in"
    for headers in ({"origin": url}, {"host": f"localhost:{port}", "sec_fetch_site": "same-origin"}):
        assert ask(f"{url}/judge", picture(), **headers).status == 200, headers


def test_every_spelling_of_this_machines_own_address_guards_against_other_names() -> None:
    bound = {"::1": "::1", "0:0:0:0:0:0:0:1": "::1", "::ffff:127.0.0.1": "::ffff:127.0.0.1", "127.0.0.2": "127.0.0.2"}
    for host, address in {**bound, "127.1": "127.0.0.1", "localhost": "127.0.0.1", "LocalHost": "::1"}.items():
        names = names_for(host, address)
        assert names is not None and names >= OWN_NAMES and "evil.example" not in names, host
        assert (f"[{host}]" if ":" in host else host.lower()) in names
    assert names_for("0.0.0.0", "0.0.0.0") is None and names_for("faces.example", "192.0.2.7") is None


def test_the_page_is_whole_in_itself_and_says_which_model_it_is(url: str) -> None:
    answer = ask(f"{url}/")
    page = answer.body.decode()
    assert "run abc &lt;b&gt;" in page and "run abc <b>" not in page
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in page and "https://" not in page, "the page asks another machine for something"
    assert ask(f"{url}/").headers["content-security-policy"] != policy, "the nonce is used twice"


def test_a_body_without_a_length_is_counted_as_it_comes(url: str) -> None:
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST /judge HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            client.sendall(b"c350\r\n" + bytes(50_000) + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_who_is_slow_or_one_too_many_is_told_so_and_the_others_go_on(detector: Detector) -> None:
    slow = Slow()
    with serving(detector, slow, Limits(seconds=1.5, at_once=1)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"POST /judge HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nabc")
            assert client.recv(100).startswith(b"HTTP/1.1 408")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, f"{url}/judge", picture())
            assert slow.begun.acquire(timeout=20)
            refused = ask(f"{url}/judge", picture())
            assert refused.status == 503 and "1 requests are being worked on" in refused.said["error"]
            assert refused.headers["retry-after"] == "1"
            assert ask(f"{url}/ping").status == 200, "whoever only asks whether it lives is answered"
            assert first.result().status == 503 and "within 1.5 s" in first.result().said["error"]
        assert ask(f"{url}/judge", picture()).status == 503, "work that nobody waits for is still work"
        slow.going.set()
        assert _once_free(url).said == {"slow": True}


def test_work_is_done_one_by_one_and_what_nobody_waits_for_any_more_is_not_begun(detector: Detector) -> None:
    slow = Slow()
    with serving(detector, slow, Limits(seconds=0.5, at_once=4)) as url:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ask(f"{url}/judge", picture()), range(4)))
        assert [answer.status for answer in answers] == [503] * 4
        slow.going.set()
        assert _once_free(url).said == {"slow": True}
    assert [slow.begun.acquire(blocking=False) for _ in range(3)] == [True, True, False], (
        "more than the first and the last"
    )


def _once_free(url: str) -> Answered:
    """The answer to a picture as soon as there is one."""
    deadline = time.monotonic() + 20
    while (last := ask(f"{url}/judge", picture())).status != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    return last


def test_a_fault_of_the_server_is_a_500_without_a_stack(detector: Detector, caplog: pytest.LogCaptureFixture) -> None:
    def broken(content: bytes) -> dict[str, object]:
        raise ZeroDivisionError("secret words")

    with serving(detector, broken) as url:
        answer = ask(f"{url}/judge", picture())
    assert answer.status == 500 and "secret" not in answer.body.decode()
    assert "secret words" in caplog.text and "Traceback" not in caplog.text
    assert len(caplog.text.splitlines()) == 1, "a client can fill the terminal"


def test_a_taken_port_is_said_and_without_one_the_next_is_taken() -> None:
    with listen(port=0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"port {port}: Address already in use"), listen(port=port):
            pass
    with pytest.raises(SettingError, match="no port 70000"), listen(port=70_000):
        pass
    with listen() as first, listen() as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_a_host_that_is_none_is_named_with_its_reason_at_once() -> None:
    with (
        pytest.raises(SettingError, match=r"cannot listen on no\.such\.host\.invalid: ") as caught,
        listen("no.such.host.invalid"),
    ):
        pass
    assert "port" not in caught.value.message and "--host" in caught.value.hint


@pytest.fixture
def served_store(detector: Detector, store: Path, tmp_path: Path) -> Path:
    """A store whose newest finished baseline is `detector`."""
    detector.save(tmp_path / "detector")
    run = open_tracker(store).start_run("baseline", key="a", settings={}, tags={"dftrack.kind": "baseline"})
    run.log_model(tmp_path / "detector", {})
    run.finish("FINISHED")
    return store


def test_the_command_guards_an_unusual_own_address_and_ends_on_request(
    served_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listen("127.0.0.2", 0) as taken:
        port = taken.getsockname()[1]
    seen: list[int] = []

    def visit() -> None:
        url, deadline = f"http://127.0.0.2:{port}", time.monotonic() + 60
        try:
            while not seen and time.monotonic() < deadline:
                try:
                    seen.append(ask(f"{url}/judge", picture()).status)
                except OSError:
                    time.sleep(0.05)
            seen.append(ask(f"{url}/judge", picture(), host="evil.example").status)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    dftrack = Terminal(capsys, monkeypatch)
    with catch_stop_requests():  # a signal that comes too late stays in here
        visitor.start()
        said = dftrack("serve", "--host", "127.0.0.2", "--port", port, "--json", "--store", served_store)
        visitor.join()
    told = json.loads(said.out)
    assert said.code == 143 and "Traceback" not in said.err
    assert told["url"] == f"http://127.0.0.2:{port}" and f"is at {told['url']}" in said.err
    assert seen == [200, 403], "DNS rebinding is let in"


@pytest.mark.slow
@pytest.mark.parametrize(("request_to_stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_tells_its_address_serves_the_model_of_the_store_and_ends_on_request(
    served_store: Path, request_to_stop: signal.Signals, code: int
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "dftrack", "serve", "--port", "0", "--json", "--store", str(served_store)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        told = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")
        assert told["run_id"] == open_tracker(served_store).latest_run().run_id
        assert ask(f"{told['url']}/judge", picture()).said["verdict"] in ("real", "fake")
        server.send_signal(request_to_stop)
        assert server.wait(60) == code
        said = server.stderr.read()
        assert f"is at {told['url']}" in said and "Traceback" not in said


@pytest.mark.browser
def test_a_dropped_picture_shows_its_verdict_and_heat_map_in_a_browser(
    url: str, detector: Detector, tmp_path: Path
) -> None:
    chromium()
    photo, broken = tmp_path / "face.png", tmp_path / "broken.png"
    photo.write_bytes(picture(5, 96))
    broken.write_bytes(picture()[:150])
    [verdict] = detector.judge([photo])
    with open_browser(width=900, height=1000) as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        drop_page(url, page, photo, (Path(SHOTS) if SHOTS else tmp_path) / "drop.png")
        assert page.locator("#verdict").inner_text() == f"Looks {verdict.verdict}"
        assert page.locator("#score").inner_text() == f"{verdict.score:.4f}"
        assert page.locator("#probability").inner_text() == f"{100 * verdict.probability:.1f} % fake"
        assert page.evaluate("[heat.naturalWidth, photo.naturalWidth]") == [detector.image_size, 96]
        assert "run abc <b>" in page.locator("#model").inner_text()
        page.set_input_files("#file", str(broken))
        page.get_by_text("truncated or damaged").wait_for()
        assert not page.locator("#result").is_visible()
        unexpected = [text for text in complaints if "favicon" not in text and "422" not in text and "404" not in text]
        assert unexpected == [], "the page breaks its own rules"
    assert (tmp_path / "drop.png").exists() or SHOTS
