"""Errors that a user can cause, each explained in one clear sentence.

Each is a subclass of `ClearheadError`. Its text says what was found, what was expected and what to do next; the
command line prints that text and exits with status 2.
"""

_MAX_TEXT = 2000


class ClearheadError(Exception):
    """The base class of every error that a user can cause. Its text is written for the user.

    It may quote names and values from untrusted files: control characters are escaped, and a very long text is cut.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


class ConfigError(ClearheadError, ValueError):
    """A model's shape or settings are invalid: a head count that does not divide, an unknown size."""


class MissingPackageError(ClearheadError, ImportError):
    """A package that only a part of Clearhead needs is not installed."""


class WeightsError(ClearheadError):
    """A file of weights is missing, broken, or does not fit the model."""


class HubError(WeightsError):
    """A model could not be fetched from the hub: no network, no such model, access refused."""


class TokenizerError(ClearheadError, ValueError):
    """Text cannot be encoded, ids cannot be decoded, or a vocabulary file is broken."""


class InputError(ClearheadError, ValueError):
    """A prompt or an option of generation is out of range."""


class TrainingError(ClearheadError):
    """A corpus, a recipe or a checkpoint does not allow training to start or to continue."""


class OverloadedError(ClearheadError):
    """Too many requests are waiting, or the server is shutting down; the same request may succeed later."""
