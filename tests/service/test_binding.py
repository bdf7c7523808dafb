"""Which picture belongs to which name."""

import pytest

from service.binding import Bound, bind
from service.errors import RequestError
from service.intake import Upload
from service.schemas import SubjectIn
from service.subjects import Subject


def uploads(*names: str) -> list[Upload]:
    return [Upload("images", name, name.encode()) for name in names]


def said(*pairs: tuple[str, str]) -> list[SubjectIn]:
    return [SubjectIn(name=name, image=image) for name, image in pairs]


def names_and_files(prompt: str, subjects: list[SubjectIn] | None, files: list[Upload]) -> list:
    return [(one.name, one.upload.filename) for one in bind(prompt, subjects, files, 4)]


def test_subjects_name_files_in_any_order() -> None:
    subjects = said(("anna", "2.png"), ("bob", "1.png"))
    assert names_and_files("", subjects, uploads("1.png", "2.png")) == [
        ("anna", "2.png"),
        ("bob", "1.png"),
    ]


def test_without_subjects_pictures_are_numbered() -> None:
    found = names_and_files("@subject1 meets @subject2", None, uploads("x.png", "y.png"))
    assert found == [("subject1", "x.png"), ("subject2", "y.png")]


def test_a_file_whose_stem_is_called_bears_that_name() -> None:
    found = names_and_files("@anna meets @subject2", None, uploads("anna.png", "y.png"))
    assert found == [("anna", "anna.png"), ("subject2", "y.png")]


@pytest.mark.parametrize("prompt", ["@annabel waves", "mail@anna", "anna waves"])
def test_a_stem_that_is_not_called_is_no_name(prompt: str) -> None:
    assert names_and_files(prompt, None, uploads("anna.png"))[0][0] == "subject1"


def test_nothing_is_fine() -> None:
    assert bind("a field", None, [], 4) == []
    assert bind("a field", [], [], 4) == []


@pytest.mark.parametrize(
    ("subjects", "files", "param", "words"),
    [
        (said(("anna", "no.png")), uploads("a.png"), "subjects[0].image", "no uploaded picture"),
        (said(("anna", "a.png")), [], "subjects[0].image", "uploaded: none"),
        (said(("anna", "a.png")), uploads("a.png", "b.png"), "images", "named by no subject"),
        ([], uploads("b.png"), "images", "named by no subject"),
        (said(("a", "x"), ("b", "x")), uploads("x"), "subjects", "share one picture"),
        (said(("a", "x"), ("b", "y")), uploads("x", "x"), "images", "two pictures are called"),
        (said(*[(f"n{k}", f"{k}") for k in range(5)]), [], "subjects", "at most 4"),
        (None, uploads("1", "2", "3", "4", "5"), "subjects", "at most 4"),
    ],
)
def test_what_does_not_fit_is_told(
    subjects: list[SubjectIn] | None, files: list[Upload], param: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as told:
        bind("@anna", subjects, files, 4)
    assert told.value.param == param


def test_a_kept_subject_brings_its_photos_and_its_name() -> None:
    kept = {"subj_1": Subject("t/subj_1", "anna", 0, ("k1", "k2"))}
    entries = [SubjectIn(id="subj_1"), SubjectIn(id="subj_1", name="zoe")]
    assert bind("@anna and @zoe", entries, [], 4, kept) == [
        Bound("anna", photos=("k1", "k2"), subject="subj_1"),
        Bound("zoe", photos=("k1", "k2"), subject="subj_1"),
    ]
    with pytest.raises(RequestError, match="give id or image, not both"):
        bind("@anna", [SubjectIn(id="subj_1", image="a.png")], [], 4, kept)
