"""What the server answers by itself: requests that never become one."""

import msgspec


class Refused(Exception):
    """The bytes received are not a request we serve. The connection is closed after the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def error_body(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> bytes:
    """Give an error in OpenAI's shape, as JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
