from pathlib import Path

import numpy as np
import pytest

from training.vlm_data import (
    FACTOR_QUESTIONS,
    TALKS,
    Album,
    factor_answer,
    open_album,
    picture_tensor,
    prompt_talk,
    talks,
    tell,
)
from training.world.identity import FACTOR_NAMES, FACTORS, sample_identity


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Album:
    path: Path = tmp_path_factory.mktemp("album") / "album.safetensors"
    return open_album(path, "train", 4, 3)


def test_every_factor_is_asked_about_and_answered_in_the_words_of_the_world():
    assert set(FACTOR_QUESTIONS) == set(FACTOR_NAMES)
    identity = sample_identity(np.random.default_rng(0))
    for name in ("shape", "body", "pattern", "eyes", "mouth"):
        assert factor_answer(identity, name).split()[0] in " ".join(FACTORS[name])


def test_talks_are_a_function_of_their_index(album: Album):
    sizes = dict.fromkeys(TALKS, 2)
    first, again, other = (talks(album, i, sizes) for i in (3, 3, 4))
    assert [t.words for t in first] == [t.words for t in again]
    assert [t.answer for t in first] == [t.answer for t in again]
    assert [t.words for t in first] != [t.words for t in other]


def test_the_third_view_is_the_near_twin(album: Album):
    for group in range(len(album.identities)):
        assert album.person(group, 0)[0] == album.person(group, 1)[0] == album.identities[group]
        assert album.person(group, 2)[0] == album.twins[group] != album.identities[group]


def test_what_happens_names_the_place_and_everybody(album: Album):
    for scene in album.scenes:
        story = tell(scene)
        assert all(role.identity.value("shape") in story for role in scene.cast)


def test_pictures_become_a_stack(album: Album):
    stack = picture_tensor([album.portraits[0, 0], album.portraits[1, 0]])
    assert stack.shape == (2, 64, 64, 3)


def test_a_prompt_alone_is_asked_who_does_what(album: Album):
    """No picture, and the answer stands in the words: the name's own sentence tells its motion."""
    rng = np.random.default_rng(5)
    found = [prompt_talk(album, rng) for _ in range(60)]
    assert {talk.kind for talk in found} == {
        "prompt motion", "prompt place", "prompt who", "prompt background", "prompt light"
    }  # fmt: skip
    for talk in found:
        assert talk.pictures == () and "<|vision_start|>" not in talk.words
        if talk.kind == "prompt motion":
            prompt, question = talk.words.rsplit("what does", 1)
            assert question.split()[0] in prompt.split("what does")[0]
        if talk.kind == "prompt who":
            assert all(name in talk.words for name in talk.answer.split(" and "))
