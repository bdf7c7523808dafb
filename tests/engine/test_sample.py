"""The loop: guidance in closed form, number of forwards, callbacks."""

import pytest
import torch

from engine import flow
from engine.sample import Conditions, guide, sample
from engine.spec import Guidance

# A stand-in for the model: the "condition" is the velocity itself, so every answer is known.
FULL, EMPTY, IMAGE = torch.tensor(5.0), torch.tensor(1.0), torch.tensor(2.0)
TEXT = torch.tensor(3.0)
CONDITIONS = Conditions(FULL, EMPTY, IMAGE, TEXT)


class Counting:
    """Answers with the condition and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def __call__(self, x, t_B, condition):  # noqa: ANN001, ANN204
        self.asked.append((float(t_B[0]), float(condition)))
        return torch.full_like(x, float(condition))


@pytest.mark.parametrize(
    ("guidance", "want", "forwards"),
    [
        (Guidance(scale=2.5), 1 + 2.5 * (5 - 1), 2),
        (Guidance(scale=1.0), 5, 1),
        (Guidance(mode="dual"), 1 + 5.0 * (2 - 1) + 7.5 * (5 - 2), 3),
        (Guidance(scale=2.5, subject_scale=1.5), 1 + 2.5 * (3 - 1) + 4 * (5 - 3), 3),
        (Guidance(scale=1.0, subject_scale=3.0), 3 + 4 * (5 - 3), 2),
        (Guidance(scale=2.5, subject_scale=1.5, interval=(0.0, 0.4)), 5, 1),
        (Guidance(scale=2.5, interval=(0.0, 0.4)), 5, 1),
        (Guidance(scale=2.5, interval=(0.4, 0.6)), 11, 2),
    ],
)
def test_guidance_is_its_formula_at_its_price(guidance, want, forwards):
    velocity = Counting()
    v = guide(velocity, torch.zeros(1, 1), 0.5, CONDITIONS, guidance)
    assert float(v) == want
    assert len(velocity.asked) == forwards


def test_dual_with_equal_scales_is_single():
    dual = Guidance(mode="dual", image_scale=3.0, text_scale=3.0)
    x = torch.zeros(1, 1)
    one = guide(Counting(), x, 0.5, CONDITIONS, dual)
    assert torch.equal(one, guide(Counting(), x, 0.5, CONDITIONS, Guidance(scale=3.0)))


def test_without_subjects_they_have_no_pull():
    velocity, guidance = Counting(), Guidance(scale=2.5, subject_scale=1.5)
    v = guide(velocity, torch.zeros(1, 1), 0.5, Conditions(FULL, EMPTY), guidance)
    assert float(v) == 11 and len(velocity.asked) == 2


def test_without_an_empty_condition_there_is_no_guidance():
    velocity = Counting()
    assert float(guide(velocity, torch.zeros(1, 1), 0.5, Conditions(FULL), Guidance())) == 5
    assert len(velocity.asked) == 1


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_the_model_is_told_the_door_times_of_the_plan(solver):
    plan, velocity = flow.schedule(solver, 4, 3.0), Counting()
    sample(velocity, torch.zeros(1, 2), Conditions(FULL), plan, Guidance())
    assert [t for t, _ in velocity.asked] == plan.door.tolist()


def test_a_constant_velocity_is_integrated_exactly():
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plan = flow.schedule("euler", 7, 5.0)
    end = sample(Counting(), noise, Conditions(FULL), plan, Guidance())
    torch.testing.assert_close(end, noise - 5)


def test_steps_report_where_the_velocity_points():
    noise, steps = torch.ones(1, 2), []
    plan = flow.schedule("euler", 3, 1.0)
    sample(Counting(), noise, Conditions(FULL), plan, Guidance(), steps.append)
    assert [(s.done, s.num_steps) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    for step in steps:
        torch.testing.assert_close(step.x0, noise - 5)


def test_what_a_callback_raises_comes_out():
    class Stop(Exception):
        pass

    def stop(step):  # noqa: ANN001, ANN202
        raise Stop

    velocity = Counting()
    plan = flow.schedule("euler", 9, 1.0)
    with pytest.raises(Stop):
        sample(velocity, torch.zeros(1, 1), CONDITIONS, plan, Guidance(), stop)
    assert len(velocity.asked) == 2


def test_steps_may_be_made_by_somebody_else():
    """As reinforcement does, which draws noise there: the model sees what that step made of x."""
    plan, seen = flow.schedule("euler", 3, 1.0), []

    def solve(given, index, x, v, history):  # noqa: ANN001, ANN202
        assert given is plan
        seen.append((index, float(v[0, 0])))
        return x + 10, history

    x = sample(Counting(), torch.zeros(1, 1), CONDITIONS, plan, Guidance(scale=2.5), solve=solve)
    assert float(x) == 30 and seen == [(0, 11.0), (1, 11.0), (2, 11.0)]


def test_a_move_changes_where_the_velocity_points():
    """The last step ends where the move says, under either solver; the very same guess, the very
    same bits."""
    for solver in ("euler", "unipc"):
        plan = flow.schedule(solver, 4, 3.0)
        given = (Counting(), torch.randn(1, 2, 1, 3, 3), CONDITIONS, plan, Guidance(scale=2.5))
        seen: list[tuple[float, float]] = []

        def to_three(x0, x, t, told, seen=seen):
            seen.append((t, told))
            return torch.full_like(x0, 3.0)

        ended = sample(*given, move=to_three)
        torch.testing.assert_close(ended, torch.full_like(ended, 3.0))
        assert seen == [(float(plan.times[i]), float(plan.door[i])) for i in range(4)]
        assert torch.equal(sample(*given, move=lambda x0, *_: x0), sample(*given))
