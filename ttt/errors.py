"""What can go wrong in `ttt`, as one tree.

    TTTError
    ├── TaskError            the task or its file is not usable as given
    │   ├── FormatError      a file is not in the format that it claims
    │   └── ContextOverflow  a prompt does not fit the model's context
    ├── ModelError           a base model can't be had, loaded or held in memory
    │   ├── ModelNotFound
    │   ├── ModelDamaged     a file's hash or content is not what it must be
    │   └── ModelTooLarge
    ├── AdapterError         an adapter folder does not fit this base model or is damaged
    └── TrainingFailed       training ended without a usable adapter; the base is unchanged
        ├── NonFiniteLoss    NaN, infinite or exploding loss
        ├── OutOfMemory
        └── Cancelled        `should_stop` said so

Every message is one sentence that gives the value and the remedy.
"""


class TTTError(Exception):
    """Base of all errors that `ttt` raises on purpose."""


class TaskError(TTTError, ValueError):
    """The task is not usable as given."""


class FormatError(TaskError):
    """A file is not in the format that it claims."""


class ContextOverflow(TaskError):
    """A prompt does not fit the model's context."""


class ModelError(TTTError):
    """A base model can't be had, loaded or held in memory."""


class ModelNotFound(ModelError):
    """No model under this name, folder or hub id."""


class ModelDamaged(ModelError):
    """A model file's hash or content is not what it must be."""


class ModelTooLarge(ModelError):
    """The model does not fit in this machine's free memory."""


class AdapterError(TTTError):
    """An adapter folder does not fit this base model or is damaged."""


class TrainingFailed(TTTError):
    """Training ended without a usable adapter; the base is unchanged."""


class NonFiniteLoss(TrainingFailed):
    """The loss became NaN, infinite or exploded."""


class OutOfMemory(TrainingFailed):
    """Training ran out of memory."""


class Cancelled(TrainingFailed):
    """`should_stop` asked training to end."""
