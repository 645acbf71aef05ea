"""Every error that k2lab raises on purpose.

    K2LabError
    ├─ ConfigError         a config.json that cannot be used
    ├─ CheckpointError     shards, tensors or quantisation that cannot be used
    │  └─ QuantizationError  a quantisation that is not K2's INT4; a ConfigError too
    ├─ TokenizerError      ranks or special tokens that cannot be used
    ├─ InputError          token ids, prompts or arguments out of range
    │  ├─ ContextError     a prompt longer than the context
    │  └─ BudgetError      memory too small for what has to lie in it
    ├─ SiteError           a site pattern that matches nothing
    ├─ ToolError           a tool whose schema or function cannot be used
    ├─ TransientError      a failure in passing: the same request may be sent again
    ├─ JournalError        a journal that cannot be begun, read or gone on with
    ├─ SandboxError        code that was ended, or a sandbox that is not tight enough
    ├─ MemoryFileError     a long-term memory that cannot be read
    ├─ BusyError           a second run while the engine is busy
    ├─ TraceError          a trace that cannot be read or shown
    └─ MissingError        an optional package, file or asset that is not there

Each message has three parts: what was found, what was expected, what to do.
"""


class K2LabError(Exception):
    """Base of all: `found`, `expected` and `mend` are kept apart for programs that want them."""

    def __init__(self, found: str, *, expected: str, mend: str) -> None:
        self.found, self.expected, self.mend = found, expected, mend
        super().__init__(f"{found} Expected: {expected} Mend: {mend}")


class ConfigError(K2LabError, ValueError):
    """A `config.json` with a missing key, or with a value that would change the computation."""


class CheckpointError(K2LabError, ValueError):
    """A shard, index or tensor that is missing, extra, damaged or of another shape or dtype."""


class QuantizationError(ConfigError, CheckpointError):
    """A `quantization_config` other than K2's INT4: the weights could not be read."""


class TokenizerError(K2LabError, ValueError):
    """A rank file or a table of special tokens that cannot be used."""


class InputError(K2LabError, ValueError):
    """A token id, a prompt or an argument outside its range."""


class ContextError(InputError):
    """A prompt that is longer than the model's context."""


class BudgetError(InputError):
    """A memory budget below what a model needs; `mend` names the smallest that works."""


class SiteError(K2LabError, ValueError):
    """A site pattern that matches no site of this model."""


class ToolError(K2LabError, ValueError):
    """A tool whose schema is not JSON Schema, or whose function cannot be described."""


class TransientError(K2LabError, ConnectionError):
    """A server or tool that failed in passing: nothing was done, the same request may go again."""

    def __init__(self, found: str, *, after: float = 0.0) -> None:
        """`after`: seconds that were asked for before the next attempt."""
        self.after = after
        super().__init__(found, expected="an answer.", mend="Try again.")


class JournalError(K2LabError, ValueError):
    """A journal that is there already, that was tampered with, or that does not fit the run."""


class SandboxError(K2LabError, RuntimeError):
    """Code that was ended or failed, or a sandbox that reached less than was asked for."""


class MemoryFileError(K2LabError, ValueError):
    """A file of long-term memory that is damaged, changed from outside, or of another version."""


class BusyError(K2LabError, RuntimeError):
    """A second run was started while one is running on the same engine."""


class TraceError(K2LabError, ValueError):
    """A trace that does not hold what was asked of it."""


class MissingError(K2LabError, FileNotFoundError):
    """An optional package, a file or an asset that is not there."""
