"""TLS contexts: one way to make them, so that none is made without verification by accident."""

import ssl
from pathlib import Path


def client_context(*, ca_file: Path | None = None, verify: bool = True) -> ssl.SSLContext:
    """Give a context that verifies against the system's authorities, or only those in `ca_file`."""
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_context(*, certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """Give a context that presents a certificate chain."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(str(certificate_file), str(key_file))
    return context
