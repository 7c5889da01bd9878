"""What an associated client gets from a virtual meter: GET with blocks, SET, ACTION."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkm.dlms import axdr
from hsmkm.dlms.security_setup import CLASS_ID
from hsmkm.dlms.types import KeyId, SystemTitle
from hsmkm.dlms.xdlms import (
    ActionRequest,
    ActionResult,
    GetBlock,
    GetNext,
    GetRequest,
    GetResult,
    Request,
    Response,
    SetResult,
)
from hsmkm.simulator.association_object import CHANGE_HLS_SECRET
from hsmkm.simulator.meter import CONSUMER_MESSAGE, Meter
from hsmkm.simulator.security_setup import READ_WRITE_DENIED, SUCCESS

BLOCK_OVERHEAD = 64
GENERAL_OVERHEAD = 400
SMALLEST_BLOCK = 64
DATA_BLOCK_UNAVAILABLE = 14
NO_LONG_GET = 16


@dataclass(slots=True)
class Rights:
    """Who asks; `authentic` is whether the request proves it, `broadcast` whether it was for a whole group."""

    client: SystemTitle | None
    public: bool
    authentic: bool
    broadcast: bool = False


class Services:
    """The services of one association; `pending` holds keys that wait to become effective."""

    def __init__(self, meter: Meter, client_max_pdu: int, overhead: int = BLOCK_OVERHEAD) -> None:
        self._meter = meter
        self._client_max_pdu = client_max_pdu
        self._overhead = overhead
        self._long_value = b""
        self._block = 0
        self.pending: dict[KeyId, bytes] = {}

    def serve(self, request: Request, rights: Rights) -> Response:
        """Answer a request."""
        if isinstance(request, ActionRequest):
            return self._action(request, rights)
        if isinstance(request, GetRequest):
            return self._get(request, rights)
        if isinstance(request, GetNext):
            return self._next_block(request)
        if request.ref == CONSUMER_MESSAGE and (rights.broadcast or rights.authentic) and not rights.public:
            return SetResult(request.invoke, self._meter.write_message(request.data))
        if rights.public or rights.client is None or not rights.authentic:
            return SetResult(request.invoke, READ_WRITE_DENIED)
        return SetResult(request.invoke, self._meter.association_object.write(request.ref, request.data))

    def _action(self, request: ActionRequest, rights: Rights) -> ActionResult:
        if rights.public or rights.client is None or not rights.authentic:
            return ActionResult(request.invoke, READ_WRITE_DENIED)
        if request.ref == CHANGE_HLS_SECRET:
            return ActionResult(request.invoke, self._meter.association_object.change(request.data))
        if (request.ref.class_id, request.ref.logical_name) != (CLASS_ID, self._meter.security_setup.logical_name):
            return ActionResult(request.invoke, READ_WRITE_DENIED)
        outcome = self._meter.security_setup.invoke(request.ref.method, request.data, rights.client)
        self.pending.update(outcome.keys)
        return ActionResult(request.invoke, outcome.error, outcome.data)

    def _get(self, request: GetRequest, rights: Rights) -> Response:
        title = rights.client.octets if rights.client else b""
        error, data = self._meter.read(request.ref, title, public=rights.public)
        result = GetResult(request.invoke, error, data)
        if data is None or not self._client_max_pdu or len(result.encode()) <= self._block_octets:
            return result
        self._long_value, self._block = axdr.encode(data), 1
        return self._current_block(request.invoke)

    @property
    def _block_octets(self) -> int:
        return max(self._client_max_pdu - self._overhead, SMALLEST_BLOCK)

    def _next_block(self, request: GetNext) -> Response:
        if not self._long_value or request.number != self._block:
            error = DATA_BLOCK_UNAVAILABLE if self._long_value else NO_LONG_GET
            return GetBlock(request.invoke, last=True, number=request.number, error=error)
        self._block += 1
        return self._current_block(request.invoke)

    def _current_block(self, invoke: int) -> GetBlock:
        size = self._block_octets
        start = (self._block - 1) * size
        raw = self._long_value[start : start + size]
        last = start + size >= len(self._long_value)
        if last:
            self._long_value = b""
        return GetBlock(invoke, last, self._block, SUCCESS, raw)
