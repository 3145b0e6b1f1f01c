"""Where a Redis stands and how to come in, read from its URL."""

import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """A server: a unix socket's `path`, or `host` and `port`."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Door:
    """What is said on every new connection; `repr` keeps the password to itself. `ca_file` replaces the usual roots."""

    username: str = ""
    password: str = ""
    database: int = 0
    tls: bool = False
    ca_file: str = ""

    def context(self) -> ssl.SSLContext | None:
        """Make what a TLS connection is checked with; None where there is none. Raises `OSError`."""
        return ssl.create_default_context(cafile=self.ca_file or None) if self.tls else None

    def __repr__(self) -> str:
        return f"Door(username={self.username!r}, database={self.database}, tls={self.tls})"


def parse_url(url: str) -> tuple[Address, Door]:
    """Read `redis://user:password@host:port/0`, `rediss://…` (TLS) or `unix:///path?db=0`. Raises `ValueError`."""
    parts = urlsplit(url)
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        if not parts.path or not database.isdecimal():
            raise ValueError("expected unix:///path?db=0")
        return Address(path=parts.path), Door(username, password, int(database))
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError("expected redis://host:port/0, rediss://host:port/0 or unix:///path?db=0")
    database = parts.path.strip("/") or "0"
    if not database.isdecimal():
        raise ValueError("expected a database number after the host: redis://host:port/0")
    return Address(parts.hostname, parts.port or 6379), Door(
        username, password, int(database), parts.scheme == "rediss"
    )
