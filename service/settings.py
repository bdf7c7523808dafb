"""What an operator may set for the gateway, in one place: one field, one unit, one working default.

Every field is read from the environment as ``TROUPE_<NAME>``; ``REDIS_URL`` alone, the name
that hosting platforms inject, is understood as well. Nothing else in `service/` reads the
environment.
"""

import os
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_PICTURES = 8


class Settings(BaseSettings):
    """The gateway's settings. The workers' settings extend them."""

    model_config = SettingsConfigDict(env_prefix="TROUPE_", populate_by_name=True, extra="ignore")

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        validation_alias=AliasChoices("TROUPE_REDIS_URL", "REDIS_URL"),
        description="The ledger's Redis: redis://, rediss:// or unix:///path.sock?db=0.",
    )
    broker_url: str | None = Field(
        default=None, description="Celery's Redis, same forms as redis_url; none: the ledger's own."
    )
    key_prefix: str = Field(default="troupe", description="First part of every key in Redis.")
    redis_timeout_s: float = Field(
        default=0.8,
        gt=0,
        le=30,
        description="Seconds for one connect or answer; tried twice at most.",
    )
    blobs_url: str = Field(
        default=".troupe/blobs", description="A folder, file:///folder, or s3://bucket/prefix."
    )
    auth: Literal["none", "keys"] = Field(
        default="none",
        description="keys: every request needs an API key (troupe keys create); none: all may.",
    )
    preset: str = Field(
        default="miniature",
        description="Name in engine.presets; its limits bound what may be asked.",
    )
    max_picture_mb: float = Field(default=12, gt=0, description="Largest picture file, MB.")
    decode_timeout_s: float = Field(
        default=10, gt=0, description="Seconds one picture may take to decode."
    )
    fetch_hosts: str = Field(
        default="",
        description="Hosts to fetch pictures from: NAME or NAME:PORT, with commas, * for all public"
        " ones; none: pictures are uploaded. See service.outward.",
    )
    max_queued: int = Field(
        default=1000, ge=0, description="Waiting jobs before new ones are refused."
    )
    lease_s: float = Field(
        default=15,
        gt=0,
        description="Seconds without a heartbeat after which a worker counts as dead.",
    )
    stall_s: float = Field(
        default=600,
        gt=0,
        description="Seconds without a step forward after which a job is taken from its worker.",
    )
    retention_h: float = Field(
        default=168, gt=0, description="Hours for which an ended job and its files are kept."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Starts of one job before it is given up."
    )

    @field_validator("redis_url", "broker_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url

    @property
    def max_body_mb(self) -> float:
        """Largest request body: as many pictures as any request takes, and some text."""
        return 1 + MAX_PICTURES * self.max_picture_mb

    @property
    def max_video_mb(self) -> float:
        """Largest video file: what the largest body holds."""
        return MAX_PICTURES * self.max_picture_mb

    @property
    def backoff_s(self) -> float:
        """Seconds before the second start of a job that failed; doubles with each."""
        return self.lease_s / 8

    @property
    def decode_children(self) -> int:
        """Pictures decoded at the same time."""
        return min(4, os.cpu_count() or 1)

    @property
    def ring_after_s(self) -> float:
        """Seconds an idle worker may leave a queued job before a new doorbell."""
        return self.lease_s / 3

    @property
    def celery_broker(self) -> str:
        """The broker's URL in kombu's spelling, in which a socket is redis+socket://."""
        url = urlsplit(self.broker_url or self.redis_url)
        if url.scheme != "unix":
            return url.geturl()
        database = parse_qs(url.query).get("db", ["0"])[0]
        return f"redis+socket://{url.path}?virtual_host={database}"
