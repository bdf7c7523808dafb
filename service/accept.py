"""From a body taken apart to a job in the queue: everything checked, then stored, then answered.

    parse ─▶ the same request before? ─▶ reserve ─▶ fetch, decode, store ─▶ submit ─▶ ring

Quota is reserved before a stranger's picture is fetched or looked at, and nothing is stored of a
request that is refused. A request that comes again, by its Idempotency-Key or because a client's
library sent it again after an answer got lost, gets the job that it made before.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from engine.spec import Spec, Wish
from service import views
from service.auth import Caller
from service.binding import Bound, bind
from service.blobs import get
from service.cost import estimate
from service.deps import House
from service.errors import (
    BlobError,
    LedgerDown,
    NotFound,
    QueueFull,
    RateLimited,
    RequestError,
)
from service.form import Raw, fetched
from service.jobs import Quota, Terms
from service.limits import Standing, standing_of
from service.refs import home, new_id, ref_of, tenant_of
from service.roster import WorkerState, models_of, tiers_of
from service.schemas import Consent, CreateVideo, Video
from service.traces import carried
from service.webhooks import check_webhook_url

RESENT_WITHIN_S = 120  # a library gives up sooner
MAX_KEY = 255
LOOKED_UP = ("subjects", "webhook_url")  # fields that somebody is asked about


@dataclass(frozen=True)
class Accepted:
    """The job of a request. standing: of the tenant's quota; None where the job was there."""

    video: Video
    standing: Standing | None

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        told = {"location": f"/v1/videos/{self.video.id}"}
        if self.standing is None:
            return told | {"idempotent-replayed": "true"}
        return told | self.standing.headers


@dataclass(frozen=True)
class Order:
    """A request that can be granted, as far as can be seen without its pictures.

    source: what makes the request's frames where the video begins with another one; it gets the
    ref to store them under and returns the spec that they lead to and what the record keeps.
    """

    spec: Spec
    wish: Wish
    bound: list[Bound]
    terms: Terms
    model: str = ""  # an adapter's name; empty: none
    source: Callable[[str], tuple[Spec, dict[str, Any]]] | None = None


async def accept(
    raw: Raw, headers: Mapping[str, str], caller: Caller, house: House
) -> Accepted:
    """A new job, or the one that this request made before.

    Raises:
        RequestError: before anything is stored.
        IdempotencyConflict: the key was used for another request.
        RateLimited: the tenant has used what it may.
        ServiceError: the store or the ledger refused; what was stored is removed.
        LedgerDown: nobody knows whether there is a job now; sending it again tells.
    """
    named = raw.fields.get("model") not in (None, house.preset.name)
    if named or raw.pictures or not raw.fields.keys().isdisjoint(LOOKED_UP):
        order = await run_in_threadpool(order_of, raw, headers, caller, house)
    else:
        order = order_of(raw, headers, caller, house)
    return await place(order, caller, house)


async def place(order: Order, caller: Caller, house: House) -> Accepted:
    """What `accept` says, of an order."""
    ready = house.durable.assured and _is_served(order.spec.tier, house.roster.recall(), house)
    ref = ref_of(caller.tenant, new_id("video"))
    if order.bound or order.source is not None or not ready:
        if any(one.upload is not None and one.upload.link for one in order.bound):
            order = await _fetched(ref, order, house)
        return await house.turns.run(caller.tenant, _place_in_order, ref, order, caller, house)
    # There is nothing to store before the record, so all is done in one go.
    taken = await house.front.submit(ref, _request(order, house), order.terms, _quota(order, house))
    standing = standing_of(taken.standing) if taken.standing else None
    if taken.ref == ref:
        house.doorbell.ring_soon(ref)
    return Accepted(views.video(taken.job or await house.front.read(taken.ref)), standing)


async def _fetched(own: str, order: Order, house: House) -> Order:
    """With the pictures that are given by address, if there is quota for the video; no thread that
    others need waits for them."""
    if not await run_in_threadpool(_is_granted, own, order, house):
        return order  # its job is there, and needs none
    given = [one.upload for one in order.bound if one.upload is not None]
    try:
        pictures = iter(await fetched(given, house.outward))
    except RequestError:
        await run_in_threadpool(_take_back, own, order, house)
        raise
    bound = [
        one if one.upload is None else replace(one, upload=next(pictures)) for one in order.bound
    ]
    return replace(order, bound=bound)


def _is_granted(own: str, order: Order, house: House) -> bool:
    """Reserve its cost, which `_placed` finds then; False: there was an equal request before."""
    house.durable.require()
    if house.ledger.arrive(own, order.terms)[1]:
        return False
    with _withdrawn(own, order.terms, house):
        _check_tier(order.spec.tier, house)
        quota = _quota(order, house)
        house.limits.reserve(own, quota.preset, quota.estimate_ms / 1000)
    return True


def _take_back(own: str, order: Order, house: House) -> None:
    with suppress(LedgerDown):  # then both go by themselves
        house.limits.release(own)
        house.ledger.withdraw(own, order.terms)


def _place_in_order(own: str, order: Order, caller: Caller, house: House) -> Accepted:
    house.durable.require()
    ref, there = house.ledger.arrive(own, order.terms)
    if ref != own:  # what was reserved to fetch pictures
        house.limits.release(own)
    if there:
        return Accepted(views.video(house.ledger.read(ref)), None)
    with _withdrawn(ref, order.terms, house):
        return _placed(ref, order, caller, house, first=ref == own)


@contextmanager
def _withdrawn(ref: str, terms: Terms, house: House) -> Iterator[None]:
    """What is refused inside has used its key for nothing."""
    try:
        yield
    except (RequestError, RateLimited, QueueFull, BlobError):
        with suppress(LedgerDown):  # then it is forgotten by itself
            house.ledger.withdraw(ref, terms)
        raise


def _placed(ref: str, order: Order, caller: Caller, house: House, first: bool) -> Accepted:
    """first: no equal request is on its way, whose pictures would be removed with these."""
    _check_tier(order.spec.tier, house)
    quota = _quota(order, house)
    with _reserved(ref, quota, house, first) as standing:
        request = _stored(ref, order, house)
        for one in order.bound:
            attested(f"{ref}#{one.name}", one.consent, caller, house)
        taken = house.ledger.submit(ref, request, order.terms, quota)
        if taken.ref != ref:  # this one was on its way for longer than a key is kept for that
            _undo(ref, house)
            return Accepted(views.video(taken.job or house.ledger.read(taken.ref)), None)
    house.doorbell.ring_soon(ref)
    return Accepted(views.video(taken.job or house.ledger.read(ref)), standing if first else None)


def attested(name: str, consent: Consent | None, caller: Caller, house: House) -> str:
    """On what basis somebody's pictures may be used, once it stands in the audit chain; empty where
    nobody said. Raises RequestError."""
    if consent is None:
        return ""
    who = consent.by or caller.key_id or caller.tenant
    house.audit.attest(caller, name, who, consent.basis, consent.statement)
    return consent.basis


def _quota(order: Order, house: House) -> Quota:
    cost_s = estimate(house.preset, order.spec) * order.wish.most
    return house.limits.quota(house.preset.name, cost_s)


def order_of(raw: Raw, headers: Mapping[str, str], caller: Caller, house: House) -> Order:
    """From the fields of a body. Raises RequestError."""
    if raw.film is not None:
        raise RequestError("video: begin with a video by POST /v1/videos/edits.", "video")
    body = CreateVideo.parse(raw.fields)
    bound = bound_of(body, raw, caller, house)
    model, spec = named_model(body, bound, house)
    terms = full_terms(body, spec, raw, headers, house)
    return Order(spec, body.to_wish(len(bound)), bound, terms, model)


def named_model(body: CreateVideo, bound: Sequence[Bound], house: House) -> tuple[str, Spec]:
    """The adapter that a body names, empty where it names none, and its spec.

    Raises RequestError; a name that no worker serves is one that is not known.
    """
    plain = body.model in (None, house.preset.name)
    served = () if plain else models_of(house.roster.recall() or house.roster.present())
    spec = body.to_spec(house.preset, tuple(one.name for one in bound), served)
    return "" if plain else str(body.model), spec


def bound_of(body: CreateVideo, raw: Raw, caller: Caller, house: House) -> list[Bound]:
    """Its subjects, those by id looked up. Raises RequestError."""
    kept = {}
    for number, one in enumerate(body.subjects or ()):
        if one.id is None:
            continue
        try:
            kept[one.id] = house.subjects.read(ref_of(caller.tenant, one.id))
        except NotFound as error:
            param = f"subjects[{number}].id"
            raise RequestError(f"{param}: {error}", param, "subject_not_found") from error
    return bind(body.prompt, body.subjects, raw.pictures, house.preset.limits.max_subjects, kept)


def full_terms(
    body: CreateVideo, spec: Spec, raw: Raw, headers: Mapping[str, str], house: House
) -> Terms:
    """All but the cost. Raises RequestError."""
    return replace(
        terms_of(raw, headers),
        priority=body.priority or "normal",
        tier=spec.tier,
        webhook=check_webhook_url(body.webhook_url or "", house.outward),
        trace=carried(headers.get("traceparent")),
    )


def terms_of(raw: Raw, headers: Mapping[str, str]) -> Terms:
    """By what this request is known again.

    A key of the client's own counts for a day. Without one, a library that tries again says so
    (`x-stainless-retry-count`): then an equal request of the last minutes is the same one.

    Raises:
        RequestError: the key is none.
    """
    digest = _digest(raw)
    key = headers.get("idempotency-key")
    if key is not None:
        if not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
            raise RequestError(
                f"Idempotency-Key: must have 1 to {MAX_KEY} printable ASCII characters.",
                param="Idempotency-Key",
            )
        return Terms(key=hashlib.sha256(key.encode()).hexdigest(), digest=digest)
    resent = headers.get("x-stainless-retry-count", "0") not in {"", "0"}
    return Terms(key=f"sent:{digest}", digest=digest, honour=resent, lasts_s=RESENT_WITHIN_S)


def _digest(raw: Raw) -> str:
    """Of what was asked, however it was sent: boundaries and the order of fields do not count."""
    uploads = [*raw.pictures, *([] if raw.film is None else [raw.film])]
    pictures = [
        [one.field, one.filename, one.link or hashlib.sha256(one.data).hexdigest()]
        for one in uploads
    ]
    asked = json.dumps([raw.what, raw.fields, pictures], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _stored(ref: str, order: Order, house: House) -> dict[str, object]:
    """The request as the record keeps it, its pictures stored."""
    references, more = _photos(ref, order.bound, house)
    beside: dict[str, Any] = {}
    if order.source is not None:
        spec, beside = order.source(ref)
        order = replace(order, spec=spec)
    request = _request(order, house, references, more)
    request["warnings"] += beside.pop("warnings", [])
    return request | beside


def _request(
    order: Order,
    house: House,
    references: Sequence[dict[str, str]] = (),
    more: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    wish, preset = order.wish, house.preset.name
    return {
        "spec": order.spec.to_json(),
        "wish": {"n": wish.n, "min_identity": wish.min_identity, "max_reseeds": wish.max_reseeds},
        "model": order.model or preset,
        "references": [*references],
        "more": [*more],
        "warnings": views.warnings_for(order.spec, preset),
    }


def _photos(
    ref: str, bound: Sequence[Bound], house: House
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What the generator sees, one of each subject, and what the judge sees besides: copies, so
    that the subject may go before the video."""
    given = [one.upload for one in bound if one.upload is not None]
    pictures = iter(house.intake.clean(given, tenant_of(ref)))
    prefix = f"{home(ref)}/in"
    references: list[dict[str, str]] = []
    more: list[dict[str, str]] = []
    for one in bound:
        if one.upload is not None:
            first = {"name": one.name, "key": house.blobs.put(prefix, next(pictures), ".png").key}
            references.append(first)
            continue
        data = [get(house.blobs, key) for key in one.photos]
        keys = [house.blobs.put(prefix, png, ".png").key for png in data]
        whose = {"subject": one.subject} if one.subject else {}
        references.append({"name": one.name, "key": keys[0], **whose})
        more += [{"name": one.name, "key": key} for key in keys[1:]]
    return references, more


@contextmanager
def _reserved(ref: str, quota: Quota, house: House, first: bool) -> Iterator[Standing]:
    """Quota for a job to be. What fails inside gives it back, and removes what was stored.

    Not where the ledger's answer got lost: the job may be there and need its pictures. If it is
    not, both go by themselves (`service.limits`).
    """
    standing = house.limits.reserve(ref, quota.preset, quota.estimate_ms / 1000)
    try:
        yield standing
    except LedgerDown:
        raise
    except BaseException:
        if first:
            _undo(ref, house)
        raise


def _undo(ref: str, house: House) -> None:
    with suppress(LedgerDown):  # then it goes back by itself
        house.limits.release(ref)
    house.blobs.delete(home(ref))


def _check_tier(tier: str, house: House) -> None:
    """Raises RequestError where workers have said what they serve, and none serves this."""
    present = house.roster.present()
    if not _is_served(tier, present, house):
        served = ", ".join(tiers_of(present, house.preset.limits.tiers))
        raise RequestError(f"tier: no worker serves {tier!r} now; use {served}.", "tier")


def _is_served(tier: str, workers: Sequence[WorkerState] | None, house: House) -> bool:
    """workers: None where nobody has looked lately."""
    return workers is not None and tier in tiers_of(workers, house.preset.limits.tiers)
