"""The gateway's own settings: the environment variables ``PERENNIAL_GATEWAY_*``."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.settings import from_environment


class Bounds(BaseSettings):
    """What the gateway lets in, and how long it waits. The defaults serve one machine generously."""

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_GATEWAY_", frozen=True, extra="ignore")

    grpc: str = ""
    """``host:port`` at which the Open Inference Protocol is answered over gRPC; empty: over HTTP only."""
    auth: bool = True
    """False opens /v1 to everybody who reaches the port: for experiments on the loopback address only."""
    max_body_bytes: int = Field(default=8 * 2**20, gt=0)
    max_rows: int = Field(default=10_000, gt=0)
    max_requests: int = Field(default=256, gt=0)
    """Requests to /v1 that one worker works on at a time.

    Further ones are 503 with Retry-After, as beyond the next two bounds.
    """
    max_pending_bytes: int = Field(default=64 * 2**20, gt=0)
    """Bytes of bodies that one worker holds at a time."""
    max_pending_rows: int = Field(default=100_000, gt=0)
    """Rows that one worker answers at a time: some three seconds of its work.

    A request that comes to none is let in with as many as it may have.
    """
    case_share: float = Field(default=0.75, gt=0, le=1)
    """What part of these three bounds one case may take: what it sends beyond does not keep others waiting."""
    max_connections: int = Field(default=1000, gt=0)
    """Open connections of one worker.

    Beyond that, each new one ends the one whose client has been waited for longest.
    """
    max_head_bytes: int = Field(default=64 * 2**10, gt=0)
    """A request's head, and whatever else of it is not body."""
    head_seconds: float = Field(default=10.0, gt=0)
    """How long a client may take to send a request's head; a late one is cut off, as with the next two."""
    body_seconds: float = Field(default=30.0, gt=0)
    """How long it may then take to send the body."""
    answer_seconds: float = Field(default=30.0, gt=0)
    """How long it may take to read the answer."""
    ready_seconds: float = Field(default=1.0, ge=0)
    """How long an answer of /readyz holds: a probe is a real inference, and nobody needs a key for it."""
    rate: str = "6000000/minute"
    """Rows (labels, figures) per API key (without keys: per client address), in the notation of `limits`.

    A request counts as one before it is read. The default is some three times what a worker scores: 30,000 rows a
    second.
    Of each worker, or of all together with ``PERENNIAL_LIMITS_URL``.
    """
    deadline_seconds: float = Field(default=5.0, gt=0)
    """How long one request may wait for Triton, retry and fallback included."""
    deadline_seconds_per_text: float = Field(default=0.2, ge=0)
    """What each text of a request adds to that.

    A transformer takes some 20 ms for one on a free core, and several times that on a busy one.
    """
    poll_seconds: float = Field(default=0.5, gt=0, le=1.0)
    """How often the ledger is read."""
    cases_seconds: float = Field(default=1.0, gt=0)
    """How often the folders of the cases are looked at."""
    sync_seconds: float = Field(default=0.2, gt=0)
    """How often the log is made durable: what a power cut may lose (a killed process loses nothing)."""

    traffic_seconds: float = Field(default=10.0, gt=0, le=3600.0)
    """How long a stretch is whose requests are counted together while a rollout is under way: what a kill may lose."""
    shadow_rows: int = Field(default=2_000, gt=0)
    """Rows of one case that may wait for the other version of a rollout; what comes when there are more is dropped."""

    @field_validator("rate")
    @classmethod
    def _rate_is_known(cls, text: str) -> str:
        from limits import parse

        parse(text)
        return text


def read_bounds() -> Bounds:
    """The environment's bounds. Raises ConfigError naming the variables that hold nothing usable."""
    return from_environment(Bounds)
