"""DAS: the files of a CMS dataset, as the experiment's catalogue knows them, by its own client."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.core.location import at_redirector
from mlaas_ray.streaming.source import Source

PROGRAM = "dasgoclient"
TIMEOUT_SECONDS = 300.0

# /primary/processed/TIER; parts may hold '*'.
_DATASET = re.compile(r"/[\w.*-]+/[\w.*-]+/[A-Z*][A-Z0-9*-]*")
# What the client says when the certificate is the trouble.
_CREDENTIALS = re.compile(
    r"x509|prox(y|ies)\b|certificate|credential|unauthori[sz]ed|forbidden", re.IGNORECASE
)


def is_dataset(name: str) -> bool:
    """Tell whether a name has the form of a dataset's: ``/A/B/NANOAODSIM``."""
    return _DATASET.fullmatch(name) is not None


def find_dataset(dataset: str, redirectors: Sequence[str]) -> list[Source]:
    """Look up the files of a dataset.

    Args:
        dataset: ``/primary/processed/TIER``; a name with ``*`` stands for all that match.
        redirectors: Where to read them, in the order to try.

    Returns:
        The valid files by name, with size, checksum, number of events, and the sites that hold the dataset.

    Raises:
        JobError: When it is no dataset's name, or there are no redirectors.
        FileMissingError: When the catalogue knows no such dataset, or no file of it.
        FileUnreadableError: When the catalogue cannot be asked.
    """
    if not is_dataset(dataset):
        raise JobError(f"{dataset!r} is no name of a dataset", "Write it as /primary/processed/TIER")
    if not redirectors:
        raise JobError(
            f"no redirector to read {dataset} from", "Name one: reading.redirectors, as root://host/"
        )
    names = _named(_ask("dataset", dataset), "dataset") if "*" in dataset else {dataset: {}}
    if not names:
        raise FileMissingError(f"DAS knows no dataset {dataset}", "Check its name")
    return [source for name in sorted(names) for source in _files(name, redirectors)]


def _files(dataset: str, redirectors: Sequence[str]) -> list[Source]:
    files = _named(_ask("file", dataset), "file")
    valid = {name: record for name, record in files.items() if record.get("is_file_valid", 1) != 0}
    if not valid:
        raise FileMissingError(f"DAS knows no valid file of {dataset}", "Check the dataset's name")
    site = _sites(dataset)
    return [_source(name, valid[name], site, redirectors) for name in sorted(valid)]


def _sites(dataset: str) -> str | None:
    """Return the sites that hold a dataset; reading needs none of them, so no answer is none."""
    try:
        return ", ".join(sorted(_named(_ask("site", dataset), "site"))) or None
    except FileUnreadableError:
        return None


def _source(name: str, record: dict[str, Any], site: str | None, redirectors: Sequence[str]) -> Source:
    first, *others = (at_redirector(redirector, name) for redirector in redirectors)
    return Source(
        first,
        tuple(others),
        size=_count(record.get("size")),
        adler32=_checksum(record.get("adler32")),
        site=record.get("site") or site,
        entries=_count(record.get("nevents")),
    )


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def _checksum(value: Any) -> str | None:
    """Return an adler32 as 8 digits: the catalogue drops leading zeros, and says NOTSET for none."""
    text = str(value).lower()
    return text.zfill(8) if re.fullmatch(r"[0-9a-f]{1,8}", text) else None


def _ask(what: str, dataset: str) -> list[dict[str, Any]]:
    """Ask for the ``file``, ``site`` or ``dataset`` records of a dataset."""
    # Users' own datasets are in a catalogue of their own.
    instance = " instance=prod/phys03" if dataset.endswith("/USER") else ""
    said = _run(f"{what} dataset={dataset}{instance}", dataset)
    try:
        answer = json.loads(said or "[]")
    except ValueError:
        raise _unanswered(dataset, said) from None
    if isinstance(answer, dict):  # with -format=json, and of the client written in Python
        if answer.get("status", "ok") != "ok":
            raise _unanswered(dataset, str(answer.get("reason", said)))
        answer = answer.get("data", [])
    if not isinstance(answer, list):
        raise _unanswered(dataset, said)
    records = [record for record in answer if isinstance(record, dict)]
    errors = [str(record["error"]) for record in records if record.get("error")]
    if errors and not _named(records, what):
        raise _unanswered(dataset, errors[0])
    return records


def _run(query: str, dataset: str) -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        raise FileUnreadableError(
            f"cannot look up the dataset {dataset}: there is no {PROGRAM} on this machine",
            "Set up CMS software (/cvmfs/cms.cern.ch/cmsset_default.sh), or list the files in a text file",
        )
    try:
        done = subprocess.run(
            [program, "-query", query, "-json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FileUnreadableError(
            f"cannot look up the dataset {dataset}: no answer of DAS in {TIMEOUT_SECONDS:.0f} s", "Try again"
        ) from None
    except OSError as error:
        raise FileUnreadableError(f"cannot run {program}: {error}", "Check its installation") from error
    if done.returncode:
        raise _unanswered(dataset, done.stderr.strip() or done.stdout or f"exit status {done.returncode}")
    return done.stdout.strip()


def _unanswered(dataset: str, said: str) -> FileUnreadableError:
    """Make an error of what the client said instead of an answer; its last line is the reason."""
    lines = said.strip().splitlines() or ["nothing"]
    return FileUnreadableError(
        f"cannot look up the dataset {dataset}: {PROGRAM} said: {lines[-1].strip()[:300]}",
        "Renew your proxy: voms-proxy-init -voms cms"
        if _CREDENTIALS.search(said)
        else "Try again, or list the files in a text file",
    )


def _named(records: list[dict[str, Any]], what: str) -> dict[str, dict[str, Any]]:
    """Put what is said of one thing together: a record holds one answer of each service that was asked."""
    named: dict[str, dict[str, Any]] = {}
    for name, answer in _answers(records, what):
        named.setdefault(name, {}).update({key: value for key, value in answer.items() if value is not None})
    return named


def _answers(records: list[dict[str, Any]], what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in records:
        answers = record.get(what)
        for answer in answers if isinstance(answers, list) else []:
            if isinstance(answer, dict) and isinstance(answer.get("name"), str):
                yield answer["name"], answer
