"""The gRPC channel to Triton, for deployer and gateway alike: who we are, whom we believe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import SecretStr

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    import grpc

OPTIONS = (("grpc.enable_http_proxy", 0),)
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
