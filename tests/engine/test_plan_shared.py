"""A plan over several cards: shares, the busiest of them, and what they send."""

import math
from dataclasses import replace

import pytest

from engine.errors import SpecError
from engine.parallel import Parallel
from engine.plan import CARDS, plan
from engine.plan_shared import sent_in_a_forward, share
from engine.presets import MINIATURE, WAN_1_3B
from engine.spec import Guidance, Spec

SPEC = Spec.of(MINIATURE, "@anna and @bob", ("anna", "bob"))
DUAL = replace(SPEC, guidance=Guidance("dual"))


@pytest.fixture(scope="module")
def found():
    return {spec: plan(MINIATURE, spec, CARDS["h200"]) for spec in (SPEC, DUAL)}


@pytest.mark.parametrize(
    "spec, cards, wanted",
    [(SPEC, 2, (2, 1)), (SPEC, 3, (1, 3)), (SPEC, 6, (2, 3)), (DUAL, 3, (3, 1)), (DUAL, 4, (2, 2))],
)
def test_forwards_are_shared_first(found, spec, cards, wanted):
    assert share(found[spec], MINIATURE, spec, cards).parallel == wanted


def test_one_card_is_the_plan_itself(found):
    alone = share(found[SPEC], MINIATURE, SPEC, 1)
    assert alone.parallel == Parallel() and alone.sent_bytes == 0
    assert math.isclose(alone.expected_s, found[SPEC].expected_s, rel_tol=1e-6)


def test_the_busiest_card_counts(found):
    """Of three forwards over two cards one has two; without guidance's there is one."""
    stages = {stage.name: stage.seconds(CARDS["h200"]) for stage in found[DUAL].stages}
    parts = [seconds for name, seconds in stages.items() if name.startswith("denoising")]
    assert len(parts) == 3
    alone = sum(stages.values()) - sum(parts)
    over = [share(found[DUAL], MINIATURE, DUAL, cards).expected_s - alone for cards in (2, 3)]
    full, image, empty = parts
    assert over == pytest.approx([image + empty, max(parts)], rel=1e-5)


def test_heads_that_do_not_divide_make_one_card_slower(found):
    """Three heads over two cards: one has two thirds of the attention, and half of the rest."""
    card, busiest, alone = CARDS["h200"], [], 0.0
    for stage in found[SPEC].stages:
        flops = stage.cost.flops
        half = (flops.total() + flops["attention"] / 3) / flops.total() / 2
        if stage.name.startswith("denoising"):
            busiest.append(stage.seconds(card) * half)
        else:
            alone += stage.seconds(card)
    over = share(found[SPEC], MINIATURE, SPEC, 4)
    assert over.parallel == (2, 2)
    assert over.expected_s == pytest.approx(alone + max(busiest), rel=1e-3)


def test_what_is_sent_is_counted_by_hand():
    spec = Spec.of(WAN_1_3B, "a place", ())
    tokens = 21 * 30 * 52
    assert sent_in_a_forward(WAN_1_3B, spec, 1) == 0
    assert sent_in_a_forward(WAN_1_3B, spec, 4) == 30 * 4 * 2 * 1536 * (tokens / 4) * 3 / 4


@pytest.mark.parametrize("cards", [0, 8, 14])
def test_more_cards_than_heads_are_refused(found, cards):
    with pytest.raises(SpecError, match="at most 6 can|3 heads"):
        share(found[SPEC], MINIATURE, SPEC, cards)
