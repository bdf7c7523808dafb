"""Several videos of one request, and which of them is given. Importable without torch.

    seed = seed_of(spec.seed, len(made))       while goes_on(wish, made)
    given = best(made)                         made: `Likeness.overall` of each, in order
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from engine.spec import MAX_SEED, Wish


def seed_of(seed: int, index: int) -> int:
    """The seed of candidate `index` of a request. Candidate 0 has the request's own, so that one
    candidate is the plain video; the others' are hashed, because those of `seed + index` would be
    shared with the requests next to it."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_SEED + 1)


def goes_on(wish: Wish, made: Sequence[float]) -> bool:
    """Whether another candidate is to be made, after those whose overall likeness is `made`.

    The first `wish.n` always are: somebody asked for them. Further ones only while none of all is
    as like as `wish.min_identity`, and at most `wish.max_reseeds` of them.
    """
    if len(made) < wish.n:
        return True
    return max(made) < wish.min_identity and len(made) < wish.most


def best(made: Sequence[float]) -> int:
    """The index of the likest; the first of equals."""
    if not made:
        raise ValueError("made: at least one candidate")
    return max(range(len(made)), key=lambda index: made[index])
