"""Where a client connects to."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"[A-Za-z0-9._:%-]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """A scheme, host and port, or a unix socket; without brackets around an IPv6 address."""

    scheme: str
    host: str
    port: int
    unix_path: str | None = None

    @classmethod
    def parse(cls, url: str, *, unix_path: str | None = None) -> "Origin":
        """Read the origin of an absolute URL. Raises `ValueError`."""
        parts = urlsplit(url)
        if parts.scheme not in PORTS:
            raise ValueError(f"expected an http or https URL, got {url!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("credentials in a URL end up in logs: give them as a header")
        host = parts.hostname
        if not host or HOST.fullmatch(host) is None:
            raise ValueError(f"no usable host in {url!r}")
        return cls(parts.scheme, host, parts.port or PORTS[parts.scheme], unix_path)

    @property
    def authority(self) -> str:
        """The value of Host: the port only where it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"
