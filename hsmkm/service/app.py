"""The routes of the AIM's HTTPS interface.

    GET  /v1/packages                list what waits for the caller
    GET  /v1/packages/{id}           fetch one (`application/pkcs7-mime`)
    POST /v1/packages/{id}/receipt   return the signed receipt; the same one again is answered as a replay
    POST /v1/meters/{title}/apdu     have a third party's APDU carried to a meter, and get the meter's answer
    GET  /healthz, /readyz           for any peer of the PKI
    GET  /metrics                    for a party that may observe

Who calls is read from the TLS connection (`state.peer_certificate`, put there by the server), never from a header, and
asked anew for each request. A package of another party is answered exactly as one that does not exist. Errors are JSON
with `error` and `hint`.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from hsmkm.config import SYSTEM_TITLE
from hsmkm.dlms.general import LARGEST_APDU
from hsmkm.errors import HsmkmError, InputError, PolicyError, RefusedError, TokenUnreachableError, TransportError
from hsmkm.service.desk import Desk, ReceiptResult
from hsmkm.service.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_RECEIPT = 1024 * 1024
PEER_CERTIFICATE = "peer_certificate"
_PACKAGE_TYPE = "application/pkcs7-mime"
_APDU_TYPE = "application/octet-stream"
_RETRY_SECONDS = "30"
_RECEIPT_STATUS = {ReceiptResult.ACCEPTED: 201, ReceiptResult.REPLAYED: 200, ReceiptResult.REFUSED: 409}
_ERROR_STATUS: tuple[tuple[type[HsmkmError], int], ...] = (
    (TokenUnreachableError, 503),
    (PolicyError, 403),
    (RefusedError, 409),
    (InputError, 422),
    (TransportError, 502),
)
_SERVER_FAULTS = 500

logger = logging.getLogger(__name__)
router = APIRouter()


def create_app(desk: Desk) -> FastAPI:
    """Make the application of one party; it answers 403 to everything that did not come over mutual TLS."""
    app = FastAPI(title="hsmkm", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    app.state.metrics = Metrics()
    app.include_router(router)
    app.add_exception_handler(HsmkmError, _answer_error)
    app.add_exception_handler(StarletteHTTPException, _answer_http)
    app.add_middleware(_Counting, metrics=app.state.metrics)
    return app


def _desk(request: Request) -> Desk:
    return cast("Desk", request.app.state.desk)


def _metrics(request: Request) -> Metrics:
    return cast("Metrics", request.app.state.metrics)


def _peer(request: Request) -> bytes:
    certificate = request.scope.get("state", {}).get(PEER_CERTIFICATE)
    if not isinstance(certificate, bytes):
        raise HTTPException(403, "a client certificate is required")
    return certificate


def _party(request: Request, certificate: Annotated[bytes, Depends(_peer)]) -> str:
    party = _desk(request).party_for(certificate)
    if party is None:
        raise HTTPException(403, "the certificate belongs to no registered party")
    return party


def _package_id(package_id: str) -> str:
    """Take the canonical form of a UUID only; anything else is a package that does not exist."""
    try:
        canonical = str(uuid.UUID(package_id))
    except ValueError:
        canonical = ""
    if canonical != package_id:
        raise _no_such_package()
    return canonical


async def _body(request: Request, limit: int, what: str) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise HTTPException(413, f"{what} has at most {limit} octets")
    return bytes(body)


DeskOf = Annotated[Desk, Depends(_desk)]
MetricsOf = Annotated[Metrics, Depends(_metrics)]
Peer = Annotated[bytes, Depends(_peer)]
Party = Annotated[str, Depends(_party)]
PackageId = Annotated[str, Depends(_package_id)]


@router.get("/v1/packages")
def list_packages(party: Party, desk: DeskOf) -> Response:
    """List the caller's packages that wait for a receipt."""
    return JSONResponse({"packages": [asdict(summary) for summary in desk.packages(party)]})


@router.get("/v1/packages/{package_id}")
def get_package(party: Party, package_id: PackageId, desk: DeskOf, metrics: MetricsOf) -> Response:
    """Hand out one of the caller's packages."""
    content = desk.package(party, package_id)
    if content is None:
        raise _no_such_package()
    metrics.count("hsmkm_packages_sent_total")
    return Response(content, media_type=_PACKAGE_TYPE)


@router.post("/v1/packages/{package_id}/receipt")
async def post_receipt(
    request: Request, party: Party, package_id: PackageId, desk: DeskOf, metrics: MetricsOf
) -> Response:
    """Take a receipt for one of the caller's packages."""
    content = await _body(request, MAX_RECEIPT, "a receipt")
    outcome = await run_in_threadpool(desk.receipt, party, package_id, content)
    metrics.count("hsmkm_receipts_total", result=outcome.result.value)
    if outcome.result is ReceiptResult.UNKNOWN:
        raise _no_such_package()
    if outcome.result is ReceiptResult.REFUSED:
        return _error(409, "the receipt is refused", "; ".join(outcome.reasons))
    return JSONResponse({"result": outcome.result.value}, _RECEIPT_STATUS[outcome.result])


@router.post("/v1/meters/{title}/apdu")
async def carry_apdu(request: Request, party: Party, title: str, desk: DeskOf, metrics: MetricsOf) -> Response:
    """Carry an APDU of the caller's to a meter that it may reach; it is protected end to end."""
    if not SYSTEM_TITLE.fullmatch(title):
        raise HTTPException(404, "no such meter")
    apdu = await _body(request, LARGEST_APDU, "an APDU")
    answer = await run_in_threadpool(desk.forward, party, title, apdu)
    metrics.count("hsmkm_apdus_carried_total")
    return Response(answer, media_type=_APDU_TYPE)


@router.get("/healthz")
def healthz(_peer: Peer) -> Response:
    """Tell that the process answers."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz")
def readyz(_peer: Peer, desk: DeskOf) -> Response:
    """Tell whether token and store answer; 503 when not."""
    ready, reason = desk.ready()
    return JSONResponse({"status": "ready"}) if ready else _error(503, "not ready", reason)


@router.get("/metrics")
def metrics_page(party: Party, desk: DeskOf, metrics: MetricsOf) -> Response:
    """Show the counters; they speak of everybody's traffic, so a party must be allowed to see them."""
    if not desk.may_observe(party):
        raise HTTPException(403, "the party may not read the metrics")
    ready, _ = desk.ready()
    refusals = desk.refusals() if ready else {}
    return Response(metrics.render(ready=ready, refusals=refusals), media_type=CONTENT_TYPE)


class _Counting:
    """Counts answers by the route's pattern, never by the path that was asked for."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
                self._metrics.count("hsmkm_requests_total", route=route, method=method, code=str(message["status"]))
            await send(message)

        await self._app(scope, receive, counted)


def _no_such_package() -> HTTPException:
    return HTTPException(404, "no such package")


def _error(status: int, error: str, hint: str = "") -> JSONResponse:
    headers = {"Retry-After": _RETRY_SECONDS} if status == 503 else None  # noqa: PLR2004 - the status says it
    return JSONResponse({"error": error, "hint": hint}, status, headers)


async def _answer_http(_request: Request, error: Exception) -> Response:
    if not isinstance(error, StarletteHTTPException):
        raise error
    return _error(error.status_code, str(error.detail).lower())


async def _answer_error(request: Request, error: Exception) -> Response:
    """Tell the caller what concerns it; what concerns the service goes to its log."""
    if not isinstance(error, HsmkmError):
        raise error
    status = next((status for kind, status in _ERROR_STATUS if isinstance(error, kind)), _SERVER_FAULTS)
    logger.warning("%s %s: %s", request.method, request.scope["route"].path, error)
    if status >= _SERVER_FAULTS:
        return _error(status, "the service cannot answer now")
    reasons = error.reasons if isinstance(error, RefusedError) else ()
    return _error(status, error.message, "; ".join(reasons) or error.hint)
