import numpy as np
import pytest

from training.world.identity import (
    FACTOR_NAMES,
    FACTORS,
    Identity,
    canonical,
    describe,
    is_held_out,
    near_twin,
    sample_identity,
)


def draws(num: int, seed: int = 0) -> list[Identity]:
    rng = np.random.default_rng(seed)
    return [sample_identity(rng) for _ in range(num)]


def test_same_seed_same_identities():
    assert draws(50) == draws(50)
    assert draws(50) != draws(50, seed=1)


def test_every_value_of_every_factor_occurs():
    seen = {name: {getattr(i, name) for i in draws(3000)} for name in FACTOR_NAMES}
    assert {name: len(values) for name, values in seen.items()} == {
        name: len(values) for name, values in FACTORS.items()
    }


def test_colours_that_touch_differ():
    for identity in draws(500):
        assert identity.body != identity.second
        assert not identity.hat or identity.hat_color != identity.body
        assert not identity.accessory or identity.accessory_color != identity.body


def test_a_twin_differs_in_one_factor():
    rng = np.random.default_rng(3)
    for identity in draws(300):
        twin = near_twin(identity, rng)
        changed = [n for n in FACTOR_NAMES if getattr(twin, n) != getattr(identity, n)]
        assert changed
        assert len(changed) == 1 or set(changed) in (
            {"hat", "hat_color"}, {"accessory", "accessory_color"},
        )
        assert canonical(twin) == twin


def test_a_twin_in_a_named_factor():
    rng = np.random.default_rng(4)
    identity = draws(1)[0]
    twin = near_twin(identity, rng, factors=("eyes",))
    assert twin.eyes != identity.eyes and twin.body == identity.body


def test_no_twin_of_an_invisible_factor():
    rng = np.random.default_rng(5)
    bare = next(i for i in draws(500) if i.hat == 0)
    with pytest.raises(ValueError, match="hat_color"):
        near_twin(bare, rng, factors=("hat_color",))


def test_a_tenth_is_held_out_and_always_the_same():
    identities = draws(4000)
    share = np.mean([is_held_out(i) for i in identities])
    assert 0.08 < share < 0.12
    assert [is_held_out(i) for i in identities[:50]] == [is_held_out(i) for i in draws(50)]


def test_a_full_description_tells_identities_apart():
    identities = sorted(set(draws(3000)))
    assert len({describe(i) for i in identities}) > 0.97 * len(identities)


def test_description_reads_as_english():
    identity = Identity(3, 4, 1, 1, 2, 0, 1, 0, 1, 7)
    assert describe(identity) == (
        "orange striped green star with three eyes, a red top hat and a blue scarf"
    )
    assert describe(identity, ("shape", "body")) == "green star"
