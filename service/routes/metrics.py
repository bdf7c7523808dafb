"""GET /metrics, for Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.deps import Operator, TheHouse
from service.errors import LedgerDown

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, house: TheHouse, caller: Operator) -> Response:
    """Prometheus's text format; where the ledger does not answer, this process's own counts."""
    try:
        figures = house.ledger.figures()
    except LedgerDown:
        figures = None
    text = request.app.state.metrics.text(figures)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
