"""Errors that a user can cause. The library raises them; the command line prints them."""

from __future__ import annotations


class MwaExportError(Exception):
    """Base of all errors that this package raises on purpose.

    The message says what was found, what was expected and what to do next. The command line
    prints it without a traceback and exits with ``exit_status``. Any other exception is a bug in
    this package and keeps its traceback.
    """

    exit_status = 2  # wrong use or bad input


class CheckpointError(MwaExportError):
    """A checkpoint cannot be read or is not a BEiT-3 retrieval model."""


class UsageError(MwaExportError):
    """Options contradict each other, or do not fit the model, bundle or machine.

    Messages give an option's Python name in backticks, with or without a value: `threads=2`.
    """


class OptionsError(UsageError):
    """An option has an invalid value."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"`{field}={value}`: expected {expected}.")
        self.field, self.value, self.expected = field, value, expected

    def __reduce__(self) -> tuple[type[OptionsError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.expected)


def check_option(field: str, value: object, fits: bool, expected: str) -> None:
    """Raise OptionsError unless ``fits``. ``expected`` describes the valid values."""
    if not fits:
        raise OptionsError(field, value, expected)


class MissingOptionError(UsageError):
    """Options that affect the result are neither stored in the checkpoint nor given."""

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields  # the missing options: "adapter_scale", ...


class AdapterError(MwaExportError):
    """An adapter file does not belong to its base, or is not a MultiWay-Adapter."""


class MergeError(MwaExportError):
    """A merge step does not exist."""


class BundleError(MwaExportError):
    """A bundle cannot be written, is incomplete, or differs from its manifest."""


class TokenizerError(MwaExportError):
    """A tokenizer model cannot be read or does not fit the vocabulary."""


class ImageError(MwaExportError):
    """An image cannot be read, or pixels have the wrong shape or type."""

    def __init__(self, message: str, code: str = "unreadable") -> None:
        super().__init__(message)
        self.code = code  # machine-readable; one of inputs.content.Code


class DataError(MwaExportError):
    """A data set or another source of images and texts is incomplete or malformed."""


class RemoteError(DataError):
    """A remote file or folder cannot be read. The message may leave out the URL."""

    def __init__(
        self, message: str, code: str = "unreadable", *, passes: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(message)
        self.code = code  # machine-readable; one of inputs.content.Code
        self.passes = passes  # whether the failure is temporary, so that a retry may work
        self.wait = wait  # seconds that the server asks to wait before a retry


class RecallError(MwaExportError):
    """Recall cannot be computed from these embeddings and image ids."""


class MissingPackageError(MwaExportError):
    """A required optional package is not installed."""


class CalibrationError(MwaExportError):
    """Calibration data or a calibration file cannot be used."""


class RuntimeUnavailableError(MwaExportError):
    """A runtime is not installed, or does not run well on this machine."""


class ClusterError(MwaExportError):
    """A Ray cluster cannot be reached, lacks resources, or its workers keep dying."""


class ProfileError(MwaExportError):
    """An engine cannot be built for these shapes, or was built for other ones."""


class EngineError(MwaExportError):
    """An engine cannot be built, or cannot or must not be loaded on this machine."""


class VerificationError(MwaExportError):
    """A check failed, for example because an exported graph differs from the reference."""

    exit_status = 1


class ParityError(VerificationError):
    """A gate of the parity report failed."""


class UndecidedError(MwaExportError):
    """The data cannot decide whether a gate passes or fails."""

    exit_status = 3


class OutputBusyError(DataError):
    """Another run is writing this output."""


class TooManyErrorsError(VerificationError):
    """More rows failed than the caller allows."""


class OutputDamagedError(VerificationError):
    """An output of `embed` does not match its manifest."""
