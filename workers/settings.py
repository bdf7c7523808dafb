"""What an operator may set for a worker: the gateway's settings and a few of its own."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from engine.errors import BackendError, RegistryError
from engine.registry import Address
from engine.runtime import Runtime
from service.settings import Settings as ServiceSettings


class Settings(ServiceSettings):
    """Read from the environment as TROUPE_<NAME>, like the gateway's."""

    model_dir: str = Field(
        default="models/miniature",
        description="The model to serve: a folder, or a registry with a channel or digest in it, as"
        " in s3://bucket/models?key=publisher.pem#stable; see engine.registry.",
    )
    job_limit_s: float = Field(
        default=3600,
        gt=0,
        description="Seconds one start of a job may run before its process is ended.",
    )
    encodings_dir: Path | None = Field(
        default=None,
        description="Folder that keeps encodings of prompts and pictures over restarts, for all"
        " workers of a machine; none: each keeps the last few in memory.",
    )
    runtime: str = Field(
        default="",
        description="Where and how the model computes, as KEY=VALUE,KEY=VALUE; see engine.runtime.",
    )

    signing_dir: Path | None = Field(
        default=None,
        description="Folder with chain.pem and key.pem that videos are signed with; none: a chain"
        " that no one else trusts, made once.",
    )

    @field_validator("model_dir", mode="before")
    @classmethod
    def _is_model(cls, given: object) -> str:
        try:
            Address.parse(str(given))
        except RegistryError as error:
            raise ValueError(str(error)) from error
        return str(given)

    @field_validator("runtime")
    @classmethod
    def _is_runtime(cls, text: str) -> str:
        try:
            return str(Runtime.parse(text))
        except BackendError as error:
            raise ValueError(str(error)) from error

    @property
    def own_signing_dir(self) -> Path:
        """Where our own chain is kept when none is given: beside the blobs of this machine."""
        url = urlsplit(self.blobs_url)
        if url.scheme == "s3":
            return Path(".troupe/signing")
        return Path(unquote(url.path)).parent / "signing"

    @property
    def model_cache(self) -> Path:
        """Where models of a registry are kept on this machine: beside our own chain."""
        return self.own_signing_dir.parent / "models"

    @property
    def reload_after_s(self) -> float:
        """Seconds between two tries to load a checkpoint that was refused."""
        return self.lease_s

    @property
    def reap_every_s(self) -> float:
        """Seconds between two rounds of the reaper."""
        return self.lease_s / 15
