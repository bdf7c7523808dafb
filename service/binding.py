"""Which picture belongs to which name.

With `subjects`, the request says so: each entry names an uploaded file, and every file is named
once, or it names a subject that is kept (`service.subjects`). Without it (the plain OpenAI form),
the k-th picture is @subjectk, unless the prompt calls @<stem> of its file name, which is then its
name.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from service.errors import RequestError
from service.intake import Upload
from service.schemas import Consent, SubjectIn
from service.subjects import Subject


@dataclass(frozen=True)
class Bound:
    """A subject's name and its picture as uploaded, or keys of photos that are stored, of a
    subject that is kept or of another video's. subject: the id of the one that is kept. consent:
    why its picture may be used."""

    name: str
    upload: Upload | None = None
    photos: tuple[str, ...] = ()
    subject: str = ""
    consent: Consent | None = None


def bind(
    prompt: str,
    subjects: Sequence[SubjectIn] | None,
    uploads: Sequence[Upload],
    at_most: int,
    kept: Mapping[str, Subject] | None = None,
) -> list[Bound]:
    """Subjects in slot order. kept: those that entries name by id.

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
    return _by_file(subjects, uploads, kept or {})


def _by_order(prompt: str, uploads: Sequence[Upload]) -> list[Bound]:
    bound = []
    for number, upload in enumerate(uploads, start=1):
        stem = unicodedata.normalize("NFC", PurePosixPath(upload.filename).stem)
        called = stem and calls(prompt, stem)
        bound.append(Bound(stem if called else f"subject{number}", upload))
    return bound


def calls(prompt: str, name: str) -> bool:
    """Whether it says @name."""
    return re.search(rf"(?<!\w)@{re.escape(name)}(?!\w)", prompt) is not None


def _by_file(
    subjects: Sequence[SubjectIn], uploads: Sequence[Upload], kept: Mapping[str, Subject]
) -> list[Bound]:
    files: dict[str, Upload] = {}
    for upload in uploads:
        if upload.filename in files:
            raise RequestError(
                f"{upload.field}: two pictures are called {upload.filename!r:.80}.",
                param=upload.field,
            )
        files[upload.filename] = upload
    bound = [_one(place, subject, files, kept) for place, subject in enumerate(subjects)]
    used = [one.upload.filename for one in bound if one.upload is not None]
    if len(set(used)) < len(used):
        raise RequestError("subjects: two subjects share one picture.", param="subjects")
    _no_leftovers(used, files)
    return bound


def _one(
    place: int, subject: SubjectIn, files: dict[str, Upload], kept: Mapping[str, Subject]
) -> Bound:
    where = f"subjects[{place}]"
    if subject.id is not None and subject.image is not None:
        raise RequestError(f"{where}: give id or image, not both.", param=where)
    if subject.id is not None and subject.consent is not None:
        raise RequestError(f"{where}.consent: one that is kept has its own.", f"{where}.consent")
    if subject.id is not None:
        found = kept[subject.id]
        return Bound(subject.name or found.name, photos=found.images, subject=found.id)
    for field in ("image", "name"):
        if getattr(subject, field) is None:
            param = f"{where}.{field}"
            raise RequestError(f"{param}: is required.", param, "missing_field")
    assert subject.name is not None and subject.image is not None
    if subject.image not in files:
        raise RequestError(
            f"subjects[{place}].image: no uploaded picture is called {subject.image!r:.80}"
            f" (uploaded: {', '.join(map(repr, files)) or 'none'}).",
            param=f"subjects[{place}].image",
        )
    return Bound(subject.name, files[subject.image], consent=subject.consent)


def _no_leftovers(used: Sequence[str], files: dict[str, Upload]) -> None:
    left = sorted(files.keys() - set(used))
    if left:
        raise RequestError(
            f"{files[left[0]].field}: the picture {left[0]!r:.80} is named by no subject.",
            param=files[left[0]].field,
        )
