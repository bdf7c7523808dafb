import numpy as np
import pytest

from training.world.caption import STYLES, caption, parse
from training.world.scene import BACKGROUNDS, LIGHTS, MOTIONS, SWAP, sample_scene


def captions(style: str | None, num: int = 120):
    for seed in range(num):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, 1 + seed % 4)
        yield scene, caption(scene, rng, style)


@pytest.mark.parametrize("style", STYLES)
def test_every_subject_has_a_span_and_spans_do_not_overlap(style: str):
    for scene, words in captions(style):
        assert len(words.spans) == len(scene.cast)
        taken: set[int] = set()
        for spans in words.spans:
            assert spans
            for start, end in spans:
                letters = set(range(start, end))
                assert letters and not letters & taken
                taken |= letters


def test_spans_of_names_are_the_names_and_the_prompt_marks_them():
    for _, words in captions("names"):
        for name, spans in zip(words.names, words.spans, strict=True):
            assert {words.text[a:b] for a, b in spans} == {name}
            assert f"@{name}" in words.prompt
        assert words.prompt.replace("@", "") == words.text


def test_descriptions_bind_without_names():
    for _, words in captions("descriptions"):
        assert "@" not in words.prompt
        assert all(words.text[a:b].startswith("the ") for spans in words.spans for a, b in spans)


def test_roles_can_be_told_apart():
    """Two characters of one scene never get the same words: the place is said where motions tie."""
    for scene, words in captions("names", 300):
        if len(scene.cast) < 2:
            continue
        ends = [spans[0][1] for spans in words.spans]
        told = [words.text[end:].split(" while ")[0].split(";")[0] for end in ends]
        motions = [role.motion for role in scene.cast]
        for k, role in enumerate(scene.cast):
            if role.motion != SWAP and motions.count(role.motion) > 1:
                clause = told[k].split(",")[0]
                assert any(word in clause for word in ("left", "right", "middle", "center"))


def test_background_and_light_are_read_back():
    for scene, words in captions(None):
        found = parse(words.text)
        assert found["background"] == BACKGROUNDS[scene.background]
        if "light" in found:
            assert found["light"] == LIGHTS[scene.light]
        else:
            assert LIGHTS[scene.light] == "day"


def test_all_motions_have_words():
    texts = " ".join(words.text for _, words in captions(None, 400))
    for verb in ("walks left", "spins", "bounces", "comes closer", "places with", "waits"):
        assert verb in texts
    assert len(MOTIONS) == 7


def test_unknown_style():
    scene = sample_scene(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="style"):
        caption(scene, np.random.default_rng(0), "poem")
