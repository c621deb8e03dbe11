"""The gRPC channel to Triton, for deployer and gateway alike: who we are, whom we believe, what its queue says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import SecretStr

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    import grpc

OPTIONS = (("grpc.enable_http_proxy", 0),)
_OF_QUEUES = {
    "Exceeds maximum queue size": "is full (serving.batching.queue.size)",
    "Request timeout expired": "has kept it waiting for too long (serving.batching.queue.timeout_ms, or its deadline)",
}
"""Triton's words (2.51) where its dynamic batcher turns a request away; its status is UNAVAILABLE, of others too."""
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\n?", re.DOTALL)


def credentials(client: SecretStr) -> grpc.ChannelCredentials:
    """What a client shows and believes.

    Its key, its certificate and that of the authority, in this order in one PEM text. Raises ConfigError if the text is
    something else.
    """
    import grpc

    text = client.get_secret_value()
    keys = [found[0] for found in _PEM.finditer(text) if found[1].endswith("PRIVATE KEY")]
    certificates = [found[0] for found in _PEM.finditer(text) if found[1] == "CERTIFICATE"]
    if len(keys) != 1 or len(certificates) < 2:
        raise ConfigError(
            f"PERENNIAL_TRITON_CLIENT holds {len(keys)} key(s) and {len(certificates)} certificate(s): "
            "it must be a private key, its certificate and "
            "the authority's certificate in PEM (`make secrets` makes such a file, triton_client)"
        )
    return grpc.ssl_channel_credentials("".join(certificates[1:]).encode(), keys[0].encode(), certificates[0].encode())


def of_queue(details: str | None) -> str:
    """What a model's queue in Triton is, if ``details`` of an error say that it turned a request away; else empty."""
    return next((what for words, what in _OF_QUEUES.items() if words in (details or "")), "")
