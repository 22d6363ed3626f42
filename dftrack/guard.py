"""What a request must be before a server looks at it: from here, of a fair size, one of few, and answered in time.

An ASGI application around a handler that knows neither sockets nor headers. Every refusal is a JSON object
{"error": ..., "hint": ...} with a fitting status.
"""

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = "application/json"
READING = ("GET", "HEAD")
OWN_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
ALWAYS = {  # on every answer: nothing of it is kept, guessed at, framed or told to other places
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may cost."""

    body_bytes: int = 16 << 20
    pictures: int = 64  # in one request
    pixels: int = 50_000_000  # of all pictures in one request, by their headers; one takes up to 12 bytes of memory
    seconds: float = 30.0  # for reading it, and again for answering it
    at_once: int = 8  # requests that are worked on; more are turned away


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was let in."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""

    @property
    def kind(self) -> str:
        """The media type of the body, without its parameters, in lower case; "" if it is not said."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Answer]]


class RefusedError(Exception):
    """A request that is not carried out: its HTTP status, what was seen, what to do."""

    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint


def answer_json(value: object, status: int = 200) -> Answer:
    """`value` as JSON."""
    return Answer(status, json.dumps(value, allow_nan=False).encode() + b"\n")


def names_for(host: str, bound: str) -> frozenset[str] | None:
    """The names to answer to when listening on `host`, which is the address `bound`; None: any, as others may ask.

    On a loopback address (127.0.0.0/8, ::1, however it is spelled) these are `host`, `bound` and the usual names. A
    page elsewhere can make a name of its own point here, but cannot make a browser send one of these.
    """
    address = ipaddress.ip_address(bound)
    if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
        return None
    return OWN_NAMES | {f"[{name}]" if ":" in name else name for name in (host.lower(), bound)}


class Guard:
    """The ASGI application. hosts: the names this server answers to, against DNS rebinding; None: to any."""

    def __init__(self, handler: Handler, limits: Limits, hosts: frozenset[str] | None) -> None:
        self._handler, self._limits, self._hosts = handler, limits, hosts
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except RefusedError as refused:
            answer = answer_json({"error": refused.message, "hint": refused.hint}, refused.status)
        except ConnectionError:
            return  # nobody is there any more
        except Exception as error:  # one line: a client must not be able to fill the terminal with stacks
            logging.getLogger(__name__).error("a request failed: %s", " ".join(repr(error).split()))
            answer = answer_json({"error": "the server failed at this request", "hint": "its log says why"}, 500)
        headers = {**ALWAYS, **answer.headers, "content-type": answer.kind, "content-length": str(len(answer.body))}
        if answer.status == 503:
            headers["retry-after"] = "1"
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers)
        self._refuse_strangers(request)
        if request.method in READING:
            return await self._handler(Request("GET", request.path, headers))
        if self._at_work >= self._limits.at_once:
            raise RefusedError(503, f"{self._at_work} requests are being worked on", "try again in a moment")
        self._at_work += 1
        try:
            body = await self._read(headers, receive)
            task = asyncio.ensure_future(self._handler(Request(request.method, request.path, headers, body)))
        except BaseException:
            self._at_work -= 1
            raise
        task.add_done_callback(self._ended)
        return await self._in_time(task)

    def _ended(self, task: "asyncio.Future[Answer]") -> None:
        """Work counts until it ends, also when nobody waits for it any more."""
        self._at_work -= 1
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain about it

    async def _in_time(self, task: "asyncio.Future[Answer]") -> Answer:
        done, _ = await asyncio.wait({task}, timeout=self._limits.seconds)
        if not done:
            raise RefusedError(503, f"no answer within {self._limits.seconds:g} s", "send fewer or smaller pictures")
        return task.result()

    def _refuse_strangers(self, request: Request) -> None:
        """Web pages of other places may make a browser send requests here: they end here."""
        host = request.headers.get("host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts is not None and name not in self._hosts:
            raise RefusedError(403, f"this server is not called {host or 'nothing'!r}", "use the address it told")
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        foreign = origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}")
        if request.method not in READING and (foreign or site not in ("same-origin", "none")):
            raise RefusedError(403, f"a page of {origin or 'another place'} may not use this server")

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The body, unless it is too large or too slow."""
        limit = self._limits.body_bytes
        said = headers.get("content-length", "0")
        if not said.isdigit():
            raise RefusedError(400, f"the length of the request is {said!r}")
        if len(said) > 18 or int(said) > limit:
            raise RefusedError(413, f"the request has {said} bytes", f"at most {limit} are taken")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError("the client left")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise RefusedError(413, "the request is too large", f"at most {limit} bytes are taken")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(408, f"the request did not arrive within {self._limits.seconds:g} s") from None
        return b"".join(parts)
