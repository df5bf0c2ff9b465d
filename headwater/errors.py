"""Which errors are answers: known, typed errors become one line on stderr and an exit code that scripts can use.

Errors are known by their full name, so that no command imports what it does not use. Anything else is a defect: it
propagates with its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

__all__ = ["FAILED", "KNOWN", "NOT_YET", "OK", "USAGE", "NotThereYet", "Refused", "reporting"]

OK, FAILED, USAGE, NOT_YET = 0, 1, 2, 3


class _Said(click.ClickException):
    """Shown like every other message of ours."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"headwater: {self.message}", file=file, err=True)


class Refused(_Said):
    """The thing asked for failed or was refused."""

    exit_code = FAILED


class NotThereYet(_Said):
    """What is asked for does not exist yet: something has to run first."""

    exit_code = NOT_YET


KNOWN: dict[str, int] = {
    "builtins.PermissionError": FAILED,  # a file of the home, or one that was named, belongs to somebody else
    "headwater.session.HomeError": USAGE,
    "catalog.settings.SettingsError": USAGE,
    "catalog.load.CatalogError": FAILED,
    "catalog.clock.ClockError": NOT_YET,
    "catalog.clock.DamagedClockError": FAILED,
    "lake.tables.MissingTableError": NOT_YET,
    "lake.tables.LakeError": FAILED,
    "streaming.log_writer.LogError": FAILED,
    "streaming.landing_batches.LandingError": FAILED,
    "streaming.dead_letters.DeadLetterError": FAILED,
    "streaming.capture.errors.CaptureError": FAILED,
    "streaming.inject.InjectError": NOT_YET,
    "streaming.retail.RetailFileError": FAILED,
    "streaming.capture.credentials.AddressError": USAGE,
    "streaming.shop_database.connect.ShopDatabaseError": FAILED,
    "ml.feature_plan.FeatureError": FAILED,
    "ml.predictor.MissingPackage": NOT_YET,
    "ml.predictor.PackageError": FAILED,
    "ml.registry.NotRegistered": NOT_YET,
    "ml.registry.RegistryError": FAILED,
    "serving.problems.NotDeployed": NOT_YET,
    "serving.problems.FeaturesUnavailable": NOT_YET,
    "serving.problems.Problem": FAILED,
    "serving.server.AddressError": FAILED,
    "headwater.entities_file.EntitiesError": FAILED,
    "headwater.run.SelectionError": USAGE,
}


# What the databases below HEADWATER_HOME raise: locked, damaged, or of another program. Their messages name no file.
DATABASE = ("sqlite3.Error", "sqlalchemy.exc.SQLAlchemyError", "mlflow.exceptions.MlflowException")
KNOWN |= dict.fromkeys(DATABASE, FAILED)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a known error into its line and exit code; whatever else there is goes on as it is."""
    try:
        yield
    except Exception as error:
        code = exit_code(type(error))
        if code is None:
            raise
        click.echo(f"headwater: {_line(error)}", err=True)
        raise SystemExit(code) from None


def exit_code(kind: type[BaseException]) -> int | None:
    """The code of the nearest known ancestor; None when the error is not a known one."""
    return next((KNOWN[name] for name in _names(kind) if name in KNOWN), None)


def _names(kind: type[BaseException]) -> list[str]:
    return [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]


def _line(error: BaseException) -> str:
    if set(DATABASE) & set(_names(type(error))):
        found = str(error).partition("\n")[0]
        return (
            f"a database in HEADWATER_HOME cannot be used: {found}; wait for the process that keeps it locked, or "
            "restore the file if it is damaged"
        )
    # str() of a KeyError quotes its message.
    return str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
