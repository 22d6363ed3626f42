"""MLflow's own scoring server with one detector, and a page where a person drops a picture.

A part of the door to MLflow. `/invocations`, `/ping` and `/version` are MLflow's; `/` and `/judge` are ours. Pictures
come as bytes or base64 only: the logged model also takes paths, which over a network would open this machine's files.
No code out of the store is run: the weights are put behind the code of this version of dftrack.
"""

import asyncio
import base64
import binascii
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dftrack.data.upright import PictureError, count_pixels
from dftrack.errors import DftrackError, SettingError
from dftrack.guard import OWN_NAMES, Answer, Guard, Limits, Message, RefusedError, Request, answer_json
from dftrack.learning.detector import Detector

# speaking is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
import dftrack.speaking  # noqa: F401

# isort: split
import uvicorn
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.types.schema import ColSpec, DataType, Schema

from dftrack.scoring import ScoringModel

PAGE = Path(__file__).with_name("pages") / "drop.html"
USUAL_PORT = 5001  # 5000 is the MLflow page's
PORTS_TRIED = 50
START_SECONDS = 30.0
END_SECONDS = 5  # for requests that are being answered
OF_MLFLOW = ("/ping", "/health", "/version")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG; WebP says so in two places

Judge = Callable[[bytes], Mapping[str, object]]  # an image file's content -> what to say of it; raises PictureError


@dataclass(frozen=True, slots=True)
class Serving:
    """A server at work."""

    url: str  # like http://127.0.0.1:5001
    _thread: threading.Thread

    def alive(self) -> bool:
        """Does it still answer?"""
        return self._thread.is_alive()


@contextmanager
def listen(host: str = "127.0.0.1", port: int | None = None) -> Iterator[socket.socket]:
    """A socket for `serve`, taken before a model is loaded. port None: the first free one from 5001 on; 0: any.

    Raises SettingError if the port is taken or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = ""
    if port is not None and not 0 <= port <= 65535:
        raise SettingError(f"there is no port {port}", "ports go from 1 to 65535")
    for number in [port] if port is not None else range(USUAL_PORT, USUAL_PORT + PORTS_TRIED):
        try:
            taken = socket.create_server((host, number), family=family)
        except OSError as error:
            if (error.errno or 0) < 0:  # of the resolver: no port helps
                said = (error.strerror or str(error)).partition(" (while")[0]
                raise SettingError(f"cannot listen on {host}: {said}", "name another with --host") from error
            reason = f"cannot listen on {host}, port {number}: {os.strerror(error.errno) if error.errno else error}"
        else:
            with taken:
                yield taken
            return
    raise SettingError(reason, "name another with --port; 0 takes any that is free")


@contextmanager
def serve(taken: socket.socket, app: Guard) -> Iterator[Serving]:
    """Answer requests on the socket until the block ends; those being answered then have five seconds.

    Raises SettingError if the server does not come up.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type, unused-ignore] # an ASGI application by its call
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=256,  # connections
        timeout_graceful_shutdown=END_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, name="dftrack-server", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not server.started:
            raise SettingError("the server does not come up", "name another address with --host and --port")
        yield Serving(_address(taken), thread)
    finally:
        server.should_exit = True
        thread.join(2 * END_SECONDS)


def _address(taken: socket.socket) -> str:
    host, port = taken.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def make_app(
    detector: Detector, judge: Judge, about: str, *, limits: Limits, names: frozenset[str] | None = OWN_NAMES
) -> Guard:
    """The application: MLflow's endpoints with `detector`, and the page, which shows what `judge` says.

    about: which model it is, for a person. names: what the server is called (`names_for`); None: anything.
    """
    routes = _Routes(detector, judge, about, limits)
    return Guard(routes.answer, limits, names)


class _Routes:
    """Which request is answered by whom.

    The model works for one request at a time: explaining hangs hooks on it, and memory holds one request's pictures.
    """

    def __init__(self, detector: Detector, judge: Judge, about: str, limits: Limits) -> None:
        self._judge, self._limits = judge, limits
        self._turn = asyncio.Lock()
        self._model = threading.Lock()  # MLflow stops waiting after a minute, its thread goes on
        self._mlflow = _scoring_app(detector, self._model)
        facts = {"model": about, "threshold": detector.threshold, "bytes": limits.body_bytes}
        self._page = PAGE.read_text(encoding="utf-8").replace("{{FACTS}}", escape(json.dumps(facts)))

    async def answer(self, request: Request) -> Answer:
        """The answer to a request that the guard let in."""
        match request.method, request.path:
            case "GET", "/":
                return self._show_page()
            case "POST", "/judge":
                await asyncio.to_thread(self._refuse_no_picture, request)
                return await self._in_turn(lambda: asyncio.to_thread(self._judge_one, request.body))
            case "POST", "/invocations":
                return await self._score(request)
            case "GET", path if path in OF_MLFLOW:
                return await _ask(self._mlflow, request, b"")
            case _, path if path in ("/", "/judge", "/invocations", *OF_MLFLOW):
                raise RefusedError(405, f"{request.path} does not take {request.method}")
        raise RefusedError(
            404, f"there is nothing at {request.path}", "POST a picture to /judge, or open / in a browser"
        )

    def _show_page(self) -> Answer:
        nonce = secrets.token_urlsafe(16)
        policy = (
            "default-src 'none'; connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
        )
        body = self._page.replace("{{NONCE}}", nonce).encode()
        return Answer(200, body, "text/html; charset=utf-8", {"content-security-policy": policy})

    async def _in_turn(self, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `work` gives, begun when all others are done; not at all if that takes half of the time there is.

        So nothing is begun that nobody waits for any more, and what is begun has the other half.
        """
        try:
            async with asyncio.timeout(self._limits.seconds / 2):
                await self._turn.acquire()
        except TimeoutError:
            raise RefusedError(503, "the model was busy with other requests", "try again in a moment") from None
        try:
            return await work()
        finally:
            self._turn.release()

    def _refuse_no_picture(self, request: Request) -> None:
        if request.kind.startswith(("multipart/", "application/x-www-form")):
            raise RefusedError(
                415,
                f"a picture is sent as it is, not as {request.kind}",
                "curl -H 'Content-Type: image/jpeg' --data-binary @face.jpg",
            )
        if not is_picture(request.body):
            raise RefusedError(415, "this is no JPEG, PNG or WebP picture", "only these are judged")
        _refuse_pixels([request.body], self._limits.pixels)

    def _judge_one(self, content: bytes) -> Answer:
        try:
            with self._model:
                return answer_json(self._judge(content))
        except PictureError as error:
            raise RefusedError(422, error.message) from error
        except DftrackError as error:
            raise RefusedError(500, error.message, error.hint) from error

    async def _score(self, request: Request) -> Answer:
        if request.kind != "application/json":
            raise RefusedError(415, f"pictures come as application/json, not as {request.kind or 'nothing'}")
        texts = await asyncio.to_thread(_picture_texts, request.body, self._limits)
        # not as "inputs": of these MLflow makes an array that is as wide as the longest text for every picture
        body = json.dumps({"dataframe_split": {"columns": ["picture"], "data": [[text] for text in texts]}}).encode()
        answer = await self._in_turn(lambda: _ask(self._mlflow, request, body))
        if answer.status >= 400:  # MLflow's own words repeat the input and show a stack
            raise RefusedError(500 if answer.status == 400 else answer.status, "the model failed at these pictures")
        return answer_json(json.loads(answer.body, parse_constant=lambda _: None))  # NaN, which is no JSON: null


def is_picture(content: bytes) -> bool:
    """Does it begin as a JPEG, PNG or WebP file does?"""
    return content.startswith(MAGIC) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


def _refuse_pixels(contents: Sequence[bytes], most: int) -> None:
    """A small file can hold a picture that takes gigabytes and minutes: its header says how large it is."""
    total = sum(map(count_pixels, contents))
    if total > most:
        raise RefusedError(
            413, f"{total / 1e6:.1f} million pixels in one request", f"at most {most / 1e6:g} million are taken"
        )


def _picture_texts(body: bytes, limits: Limits) -> list[str]:
    """The pictures of {"inputs": [...]} as data URLs, which the model cannot take for paths. Refuses all else."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the body is not JSON", 'send {"inputs": ["base64 of a picture", ...]}') from error
    given = asked.get("inputs", asked.get("instances")) if isinstance(asked, dict) else None
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or set(asked) - {"inputs", "instances"}:
        raise RefusedError(422, "the body holds no list of pictures", 'send {"inputs": ["base64 of a picture", ...]}')
    if len(texts) > limits.pictures:
        raise RefusedError(413, f"{len(texts)} pictures in one request", f"at most {limits.pictures} are taken")
    contents = [_decoded(text) if isinstance(text, str) else b"" for text in texts]
    for number, content in enumerate(contents, start=1):
        if not is_picture(content):
            raise RefusedError(
                422, f"input {number} is not base64 of a JPEG, PNG or WebP picture", "paths are not opened here"
            )
    _refuse_pixels(contents, limits.pixels)
    return [f"data:;base64,{text.partition(',')[2] if text.startswith('data:') else text}" for text in texts]


def _decoded(text: str) -> bytes:
    """What base64 (also as a `data:` URL) spells; b"" if it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return b""


class _Loaded:
    """What MLflow's PyFuncModel wraps: a detector that is loaded and checked already."""

    def __init__(self, detector: Detector, lock: threading.Lock) -> None:
        self._model, self._lock = ScoringModel(), lock
        self._model.detector = detector

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A table with a row per picture; see `scoring`."""
        with self._lock:
            return self._model.predict(None, model_input, params)


def _scoring_app(detector: Detector, lock: threading.Lock) -> Any:
    """MLflow's ASGI application. It marks the process as a server in the environment, which is taken back."""
    described = Model(signature=ModelSignature(inputs=Schema([ColSpec(DataType.string)])))
    before = dict(os.environ)
    try:
        return scoring_server.init(PyFuncModel(model_meta=described, model_impl=_Loaded(detector, lock)))
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]


async def _ask(app: Any, request: Request, body: bytes) -> Answer:
    """What an ASGI application answers to a request that has been read already."""
    headers = {"content-type": request.kind, "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
    left = [body]
    sent: list[Message] = []

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()  # the client stays
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    [status] = [message["status"] for message in sent if message["type"] == "http.response.start"]
    content = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return Answer(status, content)
