"""A certificate for a server on loopback, signed by itself, with which a client can verify who it talks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.stack.place import HOST, Place

__all__ = ["Certificate", "make_certificate"]


@dataclass(frozen=True)
class Certificate:
    """PEM files; `chain` is also what a client trusts."""

    chain: Path
    key: Path


def make_certificate(place: Place) -> Certificate:
    """The certificate in the server's home, made by openssl when it is not there yet. Raises CommandFailed."""
    certificate = Certificate(place.home / "server.crt", place.home / "server.key")
    if not (certificate.chain.exists() and certificate.key.exists()):
        place.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-days", "3650", "-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST},DNS:localhost",
             "-keyout", str(certificate.key), "-out", str(certificate.chain)]
        )  # fmt: skip
        place.run(["chmod", "600", str(certificate.key)])
    return certificate
