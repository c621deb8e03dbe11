"""Every error that Perennial raises on purpose.

    PerennialError
    |-- ConfigError        params.yaml, the environment, a step's missing input: fix the settings   (no retry)
    |-- DataError          rows, schema, files that are not what was declared: fix the data          (no retry)
    |   |-- TooFewRows     nothing to learn from yet: wait for rows and labels                       (skipped)
    |   `-- CaseError      a case's own code raised an error: mend the line that is named            (its own answer)
    |-- IntegrityError     a hash, a key or the ledger's chain does not match: stop and look         (no retry)
    |   |-- DatabaseDamaged    the ledger's database cannot read its own files: restore them
    |   `-- NotKept        an artefact is in no folder any more: restore it, or make it again
    |-- ConflictError      somebody else was first (compare-and-swap lost, id used twice)            (no retry)
    |-- TrainingDiverged   a loss or a gradient is not finite                                        (no retry)
    `-- Unavailable        MLflow, Triton, the gateway or a database does not answer                 (retry)
        |-- NoRoom         a disk is full: make room                                                   (retry)
        |-- Crowded        Triton answers, and has no room in a model's queue now                      (retry)
        |-- Preempted    a training was asked to leave and has saved itself                        (retry)
        `-- Overtaken    another drift run decided first, on the same earlier state                (retry)

A message says what happened, the value, and what to do.
"""

from __future__ import annotations


class PerennialError(Exception):
    """Base of the tree. ``exit_code`` is the CLI's, ``status`` the gateway's, ``retry`` the DAG's answer."""

    exit_code = 1
    status = 500
    retry = False


class ConfigError(PerennialError):
    """The settings or the parameters cannot work."""

    exit_code = 2
    status = 404


class DataError(PerennialError):
    """The data is not what the case declares."""

    status = 422


class TooFewRows(DataError):
    """There is nothing to learn from yet. A DAG run ends here without being broken: its later tasks are skipped."""


class CaseError(DataError):
    """A case's own code raised an error, over itself or over the data that it reads.

    ``retry`` says whether trying again may help.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class IntegrityError(PerennialError):
    """Stored bytes or the ledger's chain do not match their hash."""


class DatabaseDamaged(IntegrityError):
    """The ledger's database cannot read its own files, whichever case asks."""


class NotKept(IntegrityError):
    """An artefact that is in no folder any more."""


class ConflictError(PerennialError):
    """A compare-and-swap was lost, or an id was used twice with different content."""

    status = 409


class TrainingDiverged(PerennialError):
    """The loss or a gradient is not finite."""


class Unavailable(PerennialError):
    """A service does not answer; the work can be tried again."""

    status = 503
    retry = True


class NoRoom(Unavailable):
    """A disk or a quota is full; nothing was kept of what was asked for."""

    status = 507


class Crowded(Unavailable):
    """Triton answers, and turned this away: the model's queue was full, or it waited there for too long."""


class Preempted(Unavailable):
    """A training was asked to leave, as by SIGTERM; it goes on at its checkpoint when it is run again."""


class Overtaken(Unavailable):
    """Two windows were judged on one earlier state at the same time; the one that came second has to look again."""
