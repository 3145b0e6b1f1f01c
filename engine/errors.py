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
├── EngineStopped        the engine was stopped, or died, before the request finished
└── DeviceError          the GPU, or what stands for it, cannot do what was asked
    ├── NoDevice         there is none of the kind that was asked for
    ├── CompileError     a kernel does not compile
    ├── LaunchError      a kernel could not be launched, or failed
    └── ShapeError       a tensor is not of the shape or type that a kernel takes
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


class DeviceError(EngineError):
    """The GPU, or what stands for it, cannot do what was asked."""


class NoDevice(DeviceError):
    """There is no device of the kind that was asked for."""


class CompileError(DeviceError):
    """A kernel does not compile. `log` is what the compiler said."""

    def __init__(self, kernel: str, log: str) -> None:
        super().__init__(f"{kernel}: {log}")
        self.kernel = kernel
        self.log = log


class LaunchError(DeviceError):
    """A kernel could not be launched, or failed. Carries how it was launched, as far as it came to that."""

    def __init__(
        self,
        kernel: str,
        problem: str,
        *,
        grid: tuple[int, int, int] | None = None,
        block: tuple[int, int, int] | None = None,
        shared_bytes: int | None = None,
    ) -> None:
        launch = "" if grid is None else f" (grid {grid}, block {block}, {shared_bytes} bytes of shared memory)"
        super().__init__(f"{kernel}: {problem}{launch}")
        self.kernel = kernel
        self.grid = grid
        self.block = block
        self.shared_bytes = shared_bytes


class ShapeError(DeviceError):
    """A tensor is not of the shape or type that a kernel takes. `argument` is its name."""

    def __init__(self, kernel: str, argument: str, expected: str, arrived: str) -> None:
        super().__init__(f"{kernel}: {argument}: expected {expected}, got {arrived}")
        self.kernel = kernel
        self.argument = argument
