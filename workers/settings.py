"""What an operator may set for a worker: the gateway's settings and a few of its own."""

from pathlib import Path

from pydantic import Field, field_validator

from engine.errors import BackendError
from engine.runtime import Runtime
from service.settings import Settings as ServiceSettings


class Settings(ServiceSettings):
    """Read from the environment as TROUPE_<NAME>, like the gateway's."""

    model_dir: Path = Field(
        default=Path("models/miniature"), description="The checkpoint folder to serve."
    )
    job_limit_s: float = Field(
        default=3600,
        gt=0,
        description="Seconds one start of a job may run before its process is ended.",
    )
    load_limit_s: float = Field(
        default=900,
        gt=0,
        description="Seconds a process may take to verify and load its checkpoint.",
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

    @field_validator("runtime")
    @classmethod
    def _is_runtime(cls, text: str) -> str:
        try:
            return str(Runtime.parse(text))
        except BackendError as error:
            raise ValueError(str(error)) from error

    @property
    def reload_after_s(self) -> float:
        """Seconds between two tries to load a checkpoint that was refused."""
        return self.lease_s

    @property
    def reap_every_s(self) -> float:
        """Seconds between two rounds of the reaper."""
        return self.lease_s / 15
