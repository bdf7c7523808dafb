"""Which picture belongs to which name.

With `subjects`, the request says so: each entry names an uploaded file, and every file is named
once. Without it (the plain OpenAI form), the k-th picture is @subjectk, unless the prompt
calls @<stem> of its file name, which is then its name.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from service.errors import RequestError
from service.intake import Upload
from service.schemas import SubjectIn


@dataclass(frozen=True)
class Bound:
    """A subject's name and its picture as uploaded."""

    name: str
    upload: Upload


def bind(
    prompt: str, subjects: Sequence[SubjectIn] | None, uploads: Sequence[Upload], at_most: int
) -> list[Bound]:
    """Subjects in slot order.

    Raises:
        RequestError: too many, a file that is missing, unnamed, or there twice.
    """
    count = len(uploads) if subjects is None else len(subjects)
    if max(count, len(uploads)) > at_most:
        raise RequestError(
            f"subjects: at most {at_most} subjects with one picture each,"
            f" got {max(count, len(uploads))}.",
            param="subjects",
            code="too_many_subjects",
        )
    if subjects is None:
        return _by_order(prompt, uploads)
    return _by_file(subjects, uploads)


def _by_order(prompt: str, uploads: Sequence[Upload]) -> list[Bound]:
    bound = []
    for number, upload in enumerate(uploads, start=1):
        stem = unicodedata.normalize("NFC", PurePosixPath(upload.filename).stem)
        called = stem and re.search(rf"(?<!\w)@{re.escape(stem)}(?!\w)", prompt)
        bound.append(Bound(stem if called else f"subject{number}", upload))
    return bound


def _by_file(subjects: Sequence[SubjectIn], uploads: Sequence[Upload]) -> list[Bound]:
    files: dict[str, Upload] = {}
    for upload in uploads:
        if upload.filename in files:
            raise RequestError(
                f"{upload.field}: two pictures are called {upload.filename!r:.80}.",
                param=upload.field,
            )
        files[upload.filename] = upload
    bound = [_one(place, subject, files) for place, subject in enumerate(subjects)]
    if len({one.upload.filename for one in bound}) < len(bound):
        raise RequestError("subjects: two subjects share one picture.", param="subjects")
    _no_leftovers(bound, files)
    return bound


def _one(place: int, subject: SubjectIn, files: dict[str, Upload]) -> Bound:
    if subject.image not in files:
        raise RequestError(
            f"subjects[{place}].image: no uploaded picture is called {subject.image!r:.80}"
            f" (uploaded: {', '.join(map(repr, files)) or 'none'}).",
            param=f"subjects[{place}].image",
        )
    return Bound(subject.name, files[subject.image])


def _no_leftovers(bound: Sequence[Bound], files: dict[str, Upload]) -> None:
    left = sorted(files.keys() - {one.upload.filename for one in bound})
    if left:
        raise RequestError(
            f"{files[left[0]].field}: the picture {left[0]!r:.80} is named by no subject.",
            param=files[left[0]].field,
        )
