"""The identity stream: what its stages reach, and what it must not depend on."""

from dataclasses import replace

import pytest
import torch

from engine import families, flow
from engine.dit import WanDiT
from engine.encodings import EncodingsBatch
from engine.sample import sample
from engine.spec import Guidance
from engine.stream import SubjectInputs
from tests.engine.conftest import TOY, random_dit, random_inputs

TIMED = replace(TOY, stream_time=True)
OTHER_LAYOUTS = [{}, {"layout": "concat"}, {"cross_modal": False}]


def test_stream_does_not_see_time_or_video():
    """S.9-S.11: K and V are the same whatever x and t come later."""
    model, given = random_dit(), random_inputs()
    one = model.subject_stream(*given["subjects"])
    model(torch.zeros_like(given["x"]), given["t"] * 0, given["text"], given["subjects"])
    two = model.subject_stream(*given["subjects"])
    assert all(torch.equal(a.v_BKND, b.v_BKND) for a, b in zip(one.layers, two.layers, strict=True))


@pytest.mark.parametrize("inter", ["gated", "joint", "off"])
def test_order_of_subjects_does_not_matter_when_slots_and_tags_move_along(inter):
    model, given = random_dit(replace(TOY, inter=inter)), random_inputs()
    subjects, order = given["subjects"], [2, 0, 1]
    moved = SubjectInputs(
        refs_BSCHW=subjects.refs_BSCHW[:, order],
        tags_BSM=subjects.tags_BSM[:, order],
        vlm_BVM=subjects.vlm_BVM,
        slots_BS=torch.tensor([order]),
    )
    straight = model(given["x"], given["t"], given["text"], subjects)
    torch.testing.assert_close(
        model(given["x"], given["t"], given["text"], moved), straight, rtol=1e-4, atol=1e-5
    )
    unmoved_slots = moved._replace(slots_BS=None)
    assert not torch.allclose(
        model(given["x"], given["t"], given["text"], unmoved_slots), straight, atol=1e-4
    )


@pytest.mark.parametrize("layout", ["stream", "concat"])
@pytest.mark.parametrize("inter", ["gated", "joint"])
def test_masked_subjects_leave_no_trace(layout, inter):
    """A padded slot may hold anything: the result is that of the request without it."""
    model, given = random_dit(replace(TOY, layout=layout, inter=inter)), random_inputs()
    subjects = given["subjects"]
    two = SubjectInputs(
        subjects.refs_BSCHW[:, :2], subjects.tags_BSM[:, :2], None, subjects.vlm_BVM
    )
    padded = subjects._replace(
        subject_mask_BS=torch.tensor([[True, True, False]]),
        refs_BSCHW=torch.cat([subjects.refs_BSCHW[:, :2], torch.full((1, 1, 16, 4, 4), 50.0)], 1),
        vlm_BVM=torch.cat([subjects.vlm_BVM, torch.full((1, 4, 12), 9.0)], 1),
        vlm_mask_BV=torch.tensor([[True] * 5 + [False] * 4]),
    )
    torch.testing.assert_close(
        model(given["x"], given["t"], given["text"], padded),
        model(given["x"], given["t"], given["text"], two),
        rtol=1e-4,
        atol=1e-5,
    )


def test_stage_one_stays_within_a_subject():
    model, given = random_dit(replace(TOY, inter="off")), random_inputs()
    subjects = given["subjects"]
    changed = subjects.refs_BSCHW.clone()
    changed[:, 1] += 1
    before = model.subject_stream(*subjects).layers[-1].v_BKND.flatten(2)
    after = (
        model.subject_stream(*subjects._replace(refs_BSCHW=changed)).layers[-1].v_BKND.flatten(2)
    )
    moved = (before - after).abs().amax(-1)[0]
    assert moved[:4].max() == 0 and moved[8:].max() == 0
    assert moved[4:8].min() > 0


def test_stage_two_reaches_the_others_and_is_zero_for_one():
    gated, given = random_dit(), random_inputs(num_subjects=2)
    subjects = given["subjects"]
    changed = subjects.refs_BSCHW.clone()
    changed[:, 1] += 1
    before = gated.subject_stream(*subjects).layers[0].v_BKND
    after = gated.subject_stream(*subjects._replace(refs_BSCHW=changed)).layers[0].v_BKND
    assert (before - after)[:, :4].abs().max() > 0

    off = random_dit(replace(TOY, inter="off"))
    off.load_state_dict({k: gated.state_dict()[k] for k in off.state_dict()})
    alone = random_inputs(num_subjects=1)["subjects"]
    for one, other in zip(
        gated.subject_stream(*alone).layers, off.subject_stream(*alone).layers, strict=True
    ):
        assert torch.equal(one.v_BKND, other.v_BKND)
    lonely = subjects._replace(subject_mask_BS=torch.tensor([[True, False]]))
    torch.testing.assert_close(
        gated.subject_stream(*lonely).layers[1].v_BKND[:, :4],
        off.subject_stream(*lonely).layers[1].v_BKND[:, :4],
        rtol=0,
        atol=0,
    )


def test_tag_moves_the_result_only_when_it_is_on():
    given = random_inputs()
    subjects = given["subjects"]
    other = subjects._replace(tags_BSM=subjects.tags_BSM.flip(1))
    for tag, same in ((True, False), (False, True)):
        model = random_dit(replace(TOY, tag=tag))
        one = model(given["x"], given["t"], given["text"], subjects)
        two = model(given["x"], given["t"], given["text"], other)
        assert torch.equal(one, two) == same


@pytest.mark.parametrize("switch", OTHER_LAYOUTS, ids=str)
def test_a_stream_that_sees_the_time_starts_as_one_that_does_not(switch):
    """Only the projection of the time is new, and it begins as zero."""
    still, given = random_dit(replace(TOY, **switch)), random_inputs()
    timed = WanDiT(replace(TIMED, **switch)).eval()
    fresh = timed.load_state_dict(still.state_dict(), strict=False).missing_keys
    assert fresh == ["subject_time.weight", "subject_time.bias"]
    for t in (0.9, 0.1):
        asked = given["x"], torch.tensor([t]), given["text"], given["subjects"]
        assert torch.equal(timed(*asked), still(*asked))


def test_a_stream_that_sees_the_time_gives_other_keys_at_another_time():
    model, given = random_dit(TIMED), random_inputs()
    early, late = (
        model.subject_stream(*given["subjects"], e_BM=model._time(torch.tensor([t]))[0]).layers
        for t in (0.9, 0.1)
    )
    for one, other in zip(early, late, strict=True):
        assert not torch.allclose(one.v_BKND, other.v_BKND, atol=1e-3)


@pytest.mark.parametrize(("stream_time", "calls"), [(False, 1), (True, 6)])
def test_seeing_the_time_switches_the_cache_off(stream_time, calls):
    """Three steps under dual guidance: two forwards of each show the subjects."""
    model = random_dit(replace(TOY, stream_time=stream_time)).requires_grad_(False)
    given, seen = random_inputs(num_subjects=2), []
    model.subject_blocks[0].register_forward_hook(lambda *_: seen.append(1))
    subjects = given["subjects"]
    batch = EncodingsBatch(
        given["text"],
        subjects.refs_BSCHW,
        subjects.tags_BSM,
        torch.ones(1, 2, dtype=torch.bool),
        subjects.vlm_BVM,
        torch.ones(1, 5, dtype=torch.bool),
    )
    nobody = replace(batch, text_BTM=batch.text_BTM.flip(1))
    guidance = Guidance("dual")
    found = families.conditions("identity", model, batch, nobody, guidance)
    plan = flow.schedule("euler", 3, 3.0)
    latents = sample(model.denoise, given["x"], found, plan, guidance)
    assert len(seen) == calls and latents.isfinite().all()
