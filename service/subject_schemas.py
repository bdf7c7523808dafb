"""What may stand in requests about subjects and what stands in their answers."""

from typing import Literal

from pydantic import BaseModel, Field

from service.schemas import Closed, Consent, Text


class CreateSubject(Closed):
    """The fields of POST /v1/subjects, apart from the photos."""

    name: Text = Field(min_length=1, max_length=100, description="What a prompt may call it")
    consent: Consent | None = None


class CreateCharacter(Closed):
    """The fields of POST /v1/videos/characters, apart from the video."""

    name: Text = Field(min_length=1, max_length=100)
    consent: Consent | None = None


class Subject(BaseModel):
    """A subject as it is kept. images: paths of its photos."""

    id: str
    object: Literal["subject"] = "subject"
    name: str
    created_at: int
    images: list[str]
    consent: str | None = Field(None, description="On what basis its photos are used")


class SubjectPage(BaseModel):
    """One page of a listing."""

    object: Literal["list"] = "list"
    data: list[Subject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class SubjectDeleted(BaseModel):
    """Answer of DELETE. videos_deleted: those that went with it. Others keep their own copies of
    its photos, until they are deleted too."""

    id: str
    deleted: Literal[True] = True
    object: Literal["subject.deleted"] = "subject.deleted"
    videos_deleted: list[str]


class Character(BaseModel):
    """A subject that was made from a video, in OpenAI's words."""

    id: str
    object: Literal["character"] = "character"
    created_at: int
    name: str
