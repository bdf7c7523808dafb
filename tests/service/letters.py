"""Jobs that have ended and have a webhook, for tests."""

from service.jobs import Terms
from service.ledger import Ledger
from service.refs import LOCAL, ref_of
from tests.service.rig import request_of


def ended(
    ledger: Ledger, name: str, url: str, how: str = "completed", tenant: str = LOCAL
) -> str:
    """A job that ended like this; returns its ref."""
    ref = ref_of(tenant, name)
    ledger.submit(ref, request_of("anna"), Terms(webhook=url))
    if how == "cancelled":
        ledger.cancel(ref)
        return ref
    claim = ledger.claim(f"h-{ref}")
    assert claim is not None and claim.ref == ref
    if how == "completed":
        assert ledger.commit(claim, {}) == "ok"
    else:
        assert ledger.fail(claim, "engine_error", "no", retry=False) == "ok"
    return ref
