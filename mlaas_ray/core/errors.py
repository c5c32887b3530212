"""The family of errors: each says what went wrong and where, and what to do about it.

::

    MlaasError
    ├── JobError (ValueError)                   the job file or an option is not what it should be
    ├── DataError                               the input files
    │   ├── FileMissingError (FileNotFoundError)
    │   ├── FileUnreadableError (OSError)       not ROOT, cut short, damaged, or out of reach
    │   ├── TreeMissingError (LookupError)
    │   ├── BranchMissingError (LookupError)
    │   ├── EmptyDataError (ValueError)         nothing to read
    │   └── LabelError (ValueError)             labels no model can be trained on
    ├── FeatureError (ValueError)               a FeatureSpec that contradicts itself or its data
    ├── EventError (ValueError)                 an event that does not fit the model it was sent to
    ├── ModelError (ValueError)                 a model that cannot be built, trained or exported
    │   └── ExportError                         a trained network that is kept, but could not be exported
    ├── PackageError (ValueError)               a model package that is damaged or incomplete
    ├── StorageError (OSError)                  a folder or bucket that cannot be written to
    ├── RepositoryError                         the repository cannot be read or written, or refuses
    │   ├── RepositoryFullError                 it has no room
    │   ├── InvalidNameError (ValueError)       a name no model may have
    │   ├── ModelMissingError (LookupError)
    │   └── VersionMissingError (LookupError)
    └── ServiceError (RuntimeError)             the service cannot start, stop or be reached

They cross process borders (Ray pickles them) and know nothing of HTTP: the table of status codes is in
the HTTP layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MlaasError(Exception):
    """What the user can mend: a message (what, where) and a remedy (what to do).

    Args:
        message: One sentence without a full stop that names the file, tree, branch or key.
        remedy: One sentence without a full stop that says what to do; may be empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(
            # a caret ends the picture of an expression
            text if text[-1] in ".?!^" else f"{text}."
            for text in (self.message, self.remedy)
            if text
        )

    def __reduce__(self) -> tuple[type[MlaasError], tuple[str, str]]:
        # OSError among the bases would otherwise pickle its own idea of the arguments.
        return type(self), (self.message, self.remedy)


class JobError(MlaasError, ValueError):
    """The job file or an option is not what it should be."""


class DataError(MlaasError):
    """The input files cannot be used."""


class FileMissingError(DataError, FileNotFoundError):
    """No such file, or a pattern that matches none."""


class FileUnreadableError(DataError, OSError):
    """A file that is not ROOT, is cut short or damaged, or cannot be reached."""


class TreeMissingError(DataError, LookupError):
    """The file holds no such tree."""


class BranchMissingError(DataError, LookupError):
    """The tree holds no such branch."""


class EmptyDataError(DataError, ValueError):
    """There is nothing to read."""


class LabelError(DataError, ValueError):
    """Labels that no model can be trained on."""


class FeatureError(MlaasError, ValueError):
    """A FeatureSpec that contradicts itself or the data it is used on."""


class EventError(MlaasError, ValueError):
    """An event that does not fit the model it was sent to."""


class ModelError(MlaasError, ValueError):
    """A model that cannot be built, trained, exported or loaded."""


class ExportError(ModelError):
    """A trained network could not be exported; it is kept."""


class PackageError(MlaasError, ValueError):
    """A model package that is damaged or incomplete."""


class StorageError(MlaasError, OSError):
    """A folder or bucket that cannot be written to: full, read-only, or out of reach."""


class RepositoryError(MlaasError):
    """The model repository refuses."""


class RepositoryFullError(RepositoryError):
    """The model repository has no room for what is written."""


class InvalidNameError(RepositoryError, ValueError):
    """A name that no model may have."""


class ModelMissingError(RepositoryError, LookupError):
    """The repository holds no such model."""


class VersionMissingError(RepositoryError, LookupError):
    """The model has no such version."""


class ServiceError(MlaasError, RuntimeError):
    """The service cannot start, stop or be reached."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a phrase that offers the known names nearest to ``name``.

    Args:
        name: What the user wrote.
        known: What would have been right.

    Returns:
        ``"did you mean 'Jet_pt' or 'Jet_eta'?"`` style text, or the first few known names when none is
        near; empty when nothing is known.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if not close:
        folded = {candidate.lower(): candidate for candidate in names}
        close = [folded[key] for key in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    if close:
        return "Did you mean " + " or ".join(repr(candidate) for candidate in close) + "?"
    if not names:
        return ""
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    return f"Known: {shown}"
