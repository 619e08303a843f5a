"""The web application: what is answered under which address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.errors import UserError
from pipeline.prediction.timeline import parse_seconds
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.model.answers import Answer, Problem, RequestOptions
from pipeline.serving.requests.fetch_uri import UriRules
from pipeline.serving.requests.limits import MEBIBYTE, Limits, Refusal
from pipeline.serving.requests.option_names import OPTIONS, check_names
from pipeline.serving.requests.receive_upload import drain
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web.access import ASGI, Access, Receive, Scope, Send
from pipeline.serving.web.pages import read_asset, render_docs, render_upload_page
from pipeline.serving.web.server_metrics import Metrics
from pipeline.serving.web.service import Service, compute_stop_seconds

MOST_CLASSES = 1000
"""Largest ``top``."""
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer")]
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STATUSES = {
    400: "The request cannot be understood, or the file is empty", 401: "The token is missing or wrong",
    403: "The URI, the site or the host is not allowed", 408: "The upload is too slow",
    413: "The file has too many bytes", 415: "No video, or in no format that is accepted",
    422: "A video that is damaged, too long or too large, or options out of range",
    503: "Too many requests wait, or the server is being stopped; Retry-After says when to come again",
    504: "Not answered in time", 507: "The server's disk is full",
}  # fmt: skip
PATHS = ("/", "/page.css", "/page.js", "/predict", "/livez", "/readyz", "/-/healthz", "/metrics", "/docs", "/openapi.json")
REASON = "actnetformer.reason"
"""Key of a request's scope: why it was refused, or ""."""
BODY = {
    "required": True,
    "description": "A video file as it is, or as the file of a form, or the URI of one if the server allows URIs.",
    "content": {
        "video/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"]}
        },
        "application/json": {
            "schema": {"type": "object", "properties": {"uri": {"type": "string", "format": "uri"}}, "required": ["uri"]}
        },
    },
}


def build_app(service: Service, access: Access) -> WebApplication:
    """Builds the application: every request passes the gate, which knows who may ask, and is counted there."""
    app = FastAPI(
        title=f"Action recognition by {service.answerer.facts.name}",
        description="Send a video and get the most probable classes by two networks, and what happens when. All errors are "
        "JSON with the fields error and detail.",
        version=service.answerer.facts.sha256[:12],
        docs_url=None,
        redoc_url=None,
        lifespan=_make_lifespan(service),
    )
    _add_predict(app, service)
    _add_health(app, service)
    _add_pages(app, service, access)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(RequestValidationError, _answer_invalid_options)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    return WebApplication(app, access, service.metrics, service.stop, compute_stop_seconds(service.limits))


def build_loading_app(access: Access, metrics: Metrics) -> WebApplication:
    """Builds the application of a server whose model is still being loaded: it lives, and is not ready."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"] == "/livez":
            await PlainTextResponse("ok\n")(scope, receive, send)
        else:
            refusal = Refusal(503, "not_ready", "the model is being loaded", retry_after=5)
            await _refuse_unread(refusal, scope, receive, send)

    return WebApplication(answer, access, metrics)


@dataclass(frozen=True)
class ServiceBuilder:
    """Builds the application where it runs, if that is another process than the command's."""

    limits: Limits
    rules: UriRules
    access: Access

    def __call__(self, answerer: Answerer, scratch: Scratch) -> WebApplication:
        """Builds the application from who answers and from a folder for uploads."""
        return build_app(Service(answerer, self.limits, scratch, self.rules), self.access)


def _make_lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.finish()

    return lifespan


def _add_predict(app: FastAPI, service: Service) -> None:
    statuses: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text} for status, text in STATUSES.items()
    }

    @app.post("/predict", response_model=Answer, responses=statuses, openapi_extra={"requestBody": BODY},
              summary="Classify one video")  # fmt: skip
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_CLASSES, description="how many classes are named")] = 5,
        window: Annotated[str | None, Query(description="for a timeline: length of a window, such as 2s or 500ms")] = None,
        hop: Annotated[str | None, Query(description="time between the starts of two windows (half a window)")] = None,
    ) -> Any:
        check_names((name for name, _ in request.query_params.multi_items()), OPTIONS, "parameter of the address")
        options = RequestOptions(top=top, window=_parse_time(window, "window"), hop=_parse_time(hop, "hop"))
        if options.hop is not None and options.window is None:
            raise Refusal(422, "window", "hop needs window, for example window=2s&hop=1s")
        return await service.predict(request, options)


def _parse_time(text: str | None, name: str) -> float | None:
    try:
        return None if text is None else parse_seconds(text, name)
    except UserError as error:
        raise Refusal(422, "window", str(error)[:200]) from None


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/livez", summary="Whether the web server runs", response_class=PlainTextResponse)
    async def live() -> str:
        return "ok\n"

    @app.get("/readyz", summary="Whether a request would be answered now", responses={503: {"model": Problem}})
    async def ready() -> dict[str, Any]:
        if not await service.answerer.is_ready():
            raise Refusal(503, "not_ready", "the model is not loaded, or its process is being replaced", retry_after=5)
        return {"status": "ready", "model": service.answerer.facts.model_dump()}

    @app.get("/-/healthz", include_in_schema=False, response_class=PlainTextResponse)
    async def probed_by_kuberay() -> str:
        return "success"

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.render(), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI, service: Service, access: Access) -> None:
    limits = service.limits
    facts: dict[str, Any] = {
        "model": service.answerer.facts, "needs_token": access.token is not None, "limits": limits,
        "mebibytes": limits.upload_bytes / MEBIBYTE,
    }  # fmt: skip
    page = render_upload_page(facts)

    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    async def show_page() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/page.css", include_in_schema=False)
    async def show_style() -> Response:
        return Response(read_asset("page.css"), media_type="text/css")

    @app.get("/page.js", include_in_schema=False)
    async def show_script() -> Response:
        return Response(read_asset("page.js"), media_type="text/javascript")

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def show_docs(request: Request) -> Response:
        text = render_docs(app.openapi(), facts | {"address": str(request.base_url).rstrip("/")})
        return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})


# ---------------------------------------------------------------------------------------------------------- the errors


def make_response(refusal: Refusal) -> JSONResponse:
    """Makes the response that tells a client about a refusal."""
    headers = {"Connection": "close"} if refusal.ends_connection else {}
    if refusal.retry_after:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(Problem(error=refusal.code, detail=refusal.text).model_dump(), refusal.status, headers)


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.scope[REASON] = error.code
    return make_response(error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return await _answer_refusal(request, Refusal(499, "gone", "the client went away before its upload was complete"))


async def _answer_invalid_options(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    what = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return await _answer_refusal(request, Refusal(422, "options", what[:500]))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = await _answer_refusal(request, Refusal(error.status_code, "http", f"{error.detail}; see /docs"))
    response.headers.update(error.headers or {})  # Allow, which tells the methods that there are
    return response


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Tells nothing of what went wrong: the traceback is in the server's log."""
    return await _answer_refusal(request, Refusal(500, "internal", "the server failed; its log says why"))


async def _refuse_unread(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuses a request whose body was not read."""
    scope[REASON] = refusal.code
    has_ended = await drain(receive)
    await make_response(refusal if has_ended else refusal.end_connection())(scope, receive, send)


def _check_length(headers: Headers) -> None:
    """Raises Refusal for a request of two lengths: a proxy may believe the other one, and take the rest for another request
    (request smuggling)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        text = "the request has a Content-Length and a Transfer-Encoding: send one of them"
        raise Refusal(400, "two_lengths", text, ends_connection=True)


class WebApplication:
    """Checks who asks, adds the headers that all responses have, and counts requests by path and status."""

    def __init__(
        self, app: ASGI, access: Access, metrics: Metrics, stop: Callable[[], None] = lambda: None, stop_seconds: int = 5
    ) -> None:
        """``stop`` is called when the server begins to stop, which then waits for requests for ``stop_seconds``."""
        self.app, self.access, self.metrics, self.stop, self.stop_seconds = app, access, metrics, stop, stop_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, as ASGI applications do."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # the start and the end of the server; there are no web sockets
            return
        # HEAD is GET without a body, which the web server leaves out
        scope = {**scope, REASON: "", "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        status = "500"  # unless a response begins

        async def send_and_note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            try:
                headers = Headers(scope=scope)
                self.access.check(scope["path"], headers)
                _check_length(headers)
            except Refusal as refusal:
                await _refuse_unread(refusal, scope, receive, send_and_note)
            else:
                await self.app(scope, receive, send_and_note)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, status).inc()
            if scope[REASON] or status == "500":
                self.metrics.refusals.labels(scope[REASON] or "internal").inc()
