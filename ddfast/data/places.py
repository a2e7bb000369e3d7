"""The folders outside of a run: of all data, and of what has been decoded."""

import os
from pathlib import Path

from ddfast.errors import UserError


def find_place(variable: str, default: str) -> Path:
    """The folder that the environment variable names, or else `default`.

    Raises `UserError` if it begins with the home folder of somebody who has none.
    """
    named = os.environ.get(variable) or default
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise UserError(f"{named} lies in a home folder that is unknown; {variable} names another folder") from error
