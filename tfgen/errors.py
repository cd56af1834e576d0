"""What can go wrong, each class named by what the caller should do next."""

from __future__ import annotations


class TfgenError(Exception):
    """Base of all errors that tfgen raises on purpose; `exit_code` is what a program returns."""

    exit_code = 1


class UsageError(TfgenError):
    """Change the command line or the arguments: the message names what is allowed."""

    exit_code = 2


class InfeasibleBudgetError(TfgenError):
    """Ask for less: `nearest` is the nearest budget that the search found feasible.

    Attributes:
      nearest: the nearest feasible `Budget`, or None where nothing valid was found at all.
    """

    exit_code = 3

    def __init__(self, message: str, nearest: object | None = None):
        super().__init__(message)
        self.nearest = nearest


class ContractMissedError(TfgenError):
    """Relax the budget or allow more trainings: the file was measured and misses a limit."""

    exit_code = 4


class CorruptFileError(TfgenError):
    """Restore the named file from a good copy: its content is not what was written."""


class NewerFileError(TfgenError):
    """Take a newer tfgen: the named file is of a schema that this one does not know."""


class ExportMismatchError(TfgenError):
    """Do not deliver: the exported file disagrees with the network it was made from."""


class TrainingFailedError(TfgenError):
    """Train another network or with a smaller learning rate: the message says what went wrong."""


class DeviceError(TfgenError):
    """Look at the phone, its cable or the tool on it: the message says which, and what to do."""


# What reading data of the wrong form raises in code that expects the right one. Who reads a file
# catches these and raises CorruptFileError with its name.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
