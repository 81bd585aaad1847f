"""Errors that a user can cause. The library raises these; the command line prints them."""

from __future__ import annotations


class MwaExportError(Exception):
    """Base of all errors this package raises on purpose.

    The message says what was found, what was expected and what to do next. The command line
    prints it without a traceback and exits with ``exit_status``; any other exception is a bug of
    ours and keeps its traceback.
    """

    exit_status = 2  # wrong use or bad input


class CheckpointError(MwaExportError):
    """A checkpoint cannot be read, or is not a BEiT-3 retrieval model."""


class UsageError(MwaExportError):
    """Options that contradict each other, or that a model, bundle or machine cannot honour.

    Messages call an option by its Python name in backticks, with or without a value: `threads=2`.
    """


class OptionsError(UsageError):
    """An option has a value that it cannot have."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"`{field}={value}`: expected {expected}.")
        self.field, self.value, self.expected = field, value, expected

    def __reduce__(self) -> tuple[type[OptionsError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.expected)


def check_option(field: str, value: object, fits: bool, expected: str) -> None:
    """Raise OptionsError unless a value is one that the option can have."""
    if not fits:
        raise OptionsError(field, value, expected)


class MissingOptionError(UsageError):
    """Options that decide the result are stored in no file and were not given."""

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields  # "adapter_scale", ...


class AdapterError(MwaExportError):
    """An adapter file does not belong to the base it is combined with."""


class MergeError(MwaExportError):
    """A merge step was named that does not exist."""


class BundleError(MwaExportError):
    """A bundle cannot be written, is incomplete, or differs from its manifest."""


class TokenizerError(MwaExportError):
    """A tokenizer model cannot be read or does not fit the vocabulary."""


class ImageError(MwaExportError):
    """A picture cannot be read, or pixels have the wrong shape or type."""

    def __init__(self, message: str, code: str = "unreadable") -> None:
        super().__init__(message)
        self.code = code  # for programs; one of inputs.content.Code


class DataError(MwaExportError):
    """A retrieval data set is incomplete or malformed."""


class RemoteError(DataError):
    """Something remote that cannot be read. The message is a reason, or names the URL as well."""

    def __init__(
        self, message: str, code: str = "unreadable", *, passes: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(message)
        self.code = code  # for programs; one of inputs.content.Code
        self.passes = passes  # it may work when it is tried again
        self.wait = wait  # seconds until then that the server asks for


class RecallError(MwaExportError):
    """Embeddings and image ids that recall cannot be computed from."""


class MissingPackageError(MwaExportError):
    """An optional package is needed and not installed."""


class CalibrationError(MwaExportError):
    """Calibration data or a calibration file that cannot be used."""


class RuntimeUnavailableError(MwaExportError):
    """A runtime that is not installed, or that this machine cannot run well."""


class ClusterError(MwaExportError):
    """A Ray cluster that cannot be reached, has no room, or whose workers keep dying."""


class ProfileError(MwaExportError):
    """Shapes that an engine cannot be built for, or that lie outside what it was built for."""


class EngineError(MwaExportError):
    """An engine that cannot be built, or that may not or cannot be loaded here."""


class VerificationError(MwaExportError):
    """A check ran and failed: the exported graph does not compute what the reference computes."""

    exit_status = 1


class ParityError(VerificationError):
    """A gate of the parity report failed."""


class UndecidedError(MwaExportError):
    """The data do not show whether a gate passes or fails."""

    exit_status = 3


class OutputBusyError(DataError):
    """An output that another run is writing."""


class TooManyErrorsError(VerificationError):
    """More rows failed than the caller allows."""


class OutputDamagedError(VerificationError):
    """An output of `embed` is not what its manifest says."""
