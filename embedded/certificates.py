"""Triton's certificates: an authority whose key is forgotten at once, a server's certificate, and one client's.

Whoever has the client's key may ask Triton for anything; nobody else gets an answer (mutual TLS). Made with the package
cryptography, or where it is missing (`make secrets` needs nothing installed) with openssl.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

NAMES, ADDRESS = ("localhost", "triton"), "127.0.0.1"
"""What the server may be called by: on this machine, and in the network of the containers."""
DAYS = 3650
"""A certificate that ends would be an outage; a new one is made by deleting the old one's file."""


class Issued(NamedTuple):
    """PEM texts. ``client`` is a key, its certificate and the authority's."""

    authority: str
    server_certificate: str
    server_key: str
    client: str


def issue() -> Issued:
    """New certificates of a new authority. Raises OSError if there is neither the package cryptography nor openssl."""
    try:
        import cryptography.x509  # noqa: F401 - whether it is there
    except ImportError:
        return _by_openssl()
    return _by_cryptography()


def _by_cryptography() -> Issued:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    pem = serialization.Encoding.PEM
    now = datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("perennial")

    def certificate(key: ec.EllipticCurvePrivateKey, name: x509.Name, extension: x509.ExtensionType) -> str:
        built = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=DAYS))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        )
        return built.sign(ca_key, hashes.SHA256()).public_bytes(pem).decode()

    def private(key: ec.EllipticCurvePrivateKey) -> str:
        return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()

    authority = certificate(ca_key, ca_name, x509.BasicConstraints(ca=True, path_length=0))
    server = ec.generate_private_key(ec.SECP256R1())
    client = ec.generate_private_key(ec.SECP256R1())
    called = x509.SubjectAlternativeName([*map(x509.DNSName, NAMES), x509.IPAddress(ip_address(ADDRESS))])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return Issued(
        authority,
        certificate(server, _name("triton"), called),
        private(server),
        private(client) + certificate(client, _name("client"), usage) + authority,
    )


def _name(common: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _by_openssl() -> Issued:
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    extensions = {
        "triton": f"subjectAltName={','.join(f'DNS:{name}' for name in NAMES)},IP:{ADDRESS}",
        "client": "extendedKeyUsage=clientAuth",
    }
    with tempfile.TemporaryDirectory(prefix="perennial-keys-") as temporary:  # for its owner alone
        work = Path(temporary)
        _openssl(
            work,
            "req",
            "-x509",
            *new,
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-days",
            str(DAYS),
            "-subj",
            "/CN=perennial",
        )
        for name, extension in extensions.items():
            (work / "extensions").write_text(extension)
            _openssl(work, "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            signed = [
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                str(DAYS),
                "-extfile",
                "extensions",
            ]
            _openssl(work, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
        text = {path.name: path.read_text() for path in work.glob("*.[ck][re][ty]")}
    return Issued(
        text["ca.crt"], text["triton.crt"], text["triton.key"], text["client.key"] + text["client.crt"] + text["ca.crt"]
    )


def _openssl(folder: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise OSError(
            "there is no openssl to make Triton's certificates with: install it (`apt-get install openssl`)"
        ) from error
    if done.returncode:
        raise OSError(f"`openssl {arguments[0]}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
