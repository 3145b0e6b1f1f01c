"""Secrets in configuration: only ever by reference, so that a file can be shown, committed and mounted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REFERENCE = re.compile(r"env:(?P<env>[A-Za-z_][A-Za-z0-9_]*)|file:(?P<file>/.+)")
MAX_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Secret:
    """a reference, env:NAME or file:/path."""

    source: Literal["env", "file"]
    name: str

    @classmethod
    def from_text(cls, text: str) -> "Secret":
        """Read a reference. Raises `ValueError` for anything else, a literal secret above all, without repeating it."""
        match = REFERENCE.fullmatch(text)
        if match is None:
            raise ValueError("a secret is given by reference, env:NAME or file:/path, and never written into the file")
        return cls("env", match["env"]) if match["env"] else cls("file", match["file"])

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"

    def resolve(self, environ: Mapping[str, str]) -> str:
        """Fetch the secret. Raises `ValueError` when it is missing, empty or unprintable, naming its place."""
        if self.source == "env":
            if self.name not in environ:
                raise ValueError(f"the environment variable {self.name} is not set")
            value = environ[self.name]
        else:
            try:
                value = Path(self.name).read_text("utf-8")
            except OSError as error:
                raise ValueError(f"cannot read {self.name}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{self.name} is not UTF-8 text") from None
        value = value.strip()
        if not value:
            raise ValueError(f"{self} is empty")
        if len(value) > MAX_CHARS or not value.isprintable() or not value.isascii():
            raise ValueError(f"{self} holds no usable secret: printable ASCII of at most {MAX_CHARS} characters")
        return value
