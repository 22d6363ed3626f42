"""How MLflow behaves here: it unpickles nothing, reports to nobody and is quiet; and what it throws, in words of ours.

A part of the door to MLflow, imported before all others.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The one thing done at import: MLflow reads these switches while it is imported itself.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # no alembic chatter on the terminal
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # standard output is for --json

import mlflow
import sqlalchemy
from mlflow.exceptions import MlflowException

from dftrack.errors import StoreError
from dftrack.redaction import scrub

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its tracebacks reach the user as StoreErrors


@contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy and the network throw into a StoreError that a person can read."""
    try:
        yield
    except MlflowException as error:
        raise explained(str(error), uri) from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise explained(str(error), uri) from error
    except OSError as error:  # requests' errors are OSErrors, too
        raise explained(str(error), uri) from error


def explained(message: str, uri: str) -> StoreError:
    where = scrub(uri.removeprefix("sqlite:///"))
    text = " ".join(scrub(message).split())
    if found := re.search(r"out-of-date database schema \(found version (\w+)", text):
        return _other_schema(found[1], where)
    hints = {
        "disk is full": "free some space and run the command again: nothing is lost",
        "disk I/O error": "is there space, and is the disk well?",
        "database is locked": "another process has held it for 20 s: run the command again",
        "readonly": "may you write there?",
        "malformed": "move it away, or restore a copy; `sqlite3 mlflow.db .recover` saves what can be read",
        "not a database": "move it away, or choose another folder with --store",
        "No module named": "PostgreSQL needs a driver: pip install 'dftrack[postgres]'",
    }
    hint = next((hint for symptom, hint in hints.items() if symptom in text), "")
    return StoreError(f"the tracking store {where} failed: {text[:300]}", hint)


def _other_schema(version: str, where: str) -> StoreError:
    known = (Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions").glob(f"{version}_*.py")
    if any(known):
        return StoreError(
            f"{where} was written by an older MLflow (schema {version})",
            "keep a copy of it, then run: mlflow db upgrade sqlite:////path/to/mlflow.db",
        )
    return StoreError(
        f"{where} was written by a newer MLflow than {mlflow.__version__} (schema {version})",
        "update mlflow, or choose another folder with --store",
    )
