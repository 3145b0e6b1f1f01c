"""Every error that the engine raises to its caller.

EngineError
├── InvalidConfig        a setting of the engine is out of range
├── InvalidParams        a sampling parameter is out of range
├── DuplicateRequest     a request of this id is still on its way
├── PromptTooLong        the prompt and one token do not fit into the context or into the KV pool
├── PromptEmpty          no token to start from
├── ModelError           a model directory is missing something or holds something unknown
├── TemplateError        the chat template refused the messages, or ran too long
├── QueueFull            the engine's inbox is bounded and full
└── EngineStopped        the engine was stopped, or died, before the request finished
"""


class EngineError(Exception):
    """The root of the tree."""


class InvalidConfig(EngineError):
    """A setting of the engine is out of range. `key` is its name."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key}: expected {expected}, got {value!r}")
        self.key = key


class InvalidParams(EngineError):
    """A sampling parameter is out of range. `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class DuplicateRequest(EngineError):
    """A request of this id was submitted and has not ended."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"a request with the id {request_id!r} is still on its way")
        self.request_id = request_id


class PromptTooLong(EngineError):
    """The prompt does not fit; it is never cut. Carries both numbers."""

    def __init__(self, num_tokens: int, limit: int, what: str = "the model's context length") -> None:
        super().__init__(f"the prompt has {num_tokens} tokens, and {what} is {limit}, of which one is for the answer")
        self.num_tokens = num_tokens
        self.limit = limit


class PromptEmpty(EngineError):
    """The prompt has no token."""


class ModelError(EngineError):
    """A model directory lacks something, or holds something that this engine does not know."""


class TemplateError(EngineError):
    """The chat template refused the messages, produced too much or ran too long."""


class QueueFull(EngineError):
    """Too many requests wait already. `limit` is how many may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests wait already")
        self.limit = limit


class EngineStopped(EngineError):
    """The engine was stopped, or died, before the request finished."""
