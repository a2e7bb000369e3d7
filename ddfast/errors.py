"""The ways a run can end without being done; the command line says each in one line (endings.py)."""


class UserError(ValueError):
    """A mistake of the user's: a wrong value, a missing or broken file. Exit code 2."""


class RunFailed(RuntimeError):
    """A run that could not go on: a loss that is not finite, a full disk. Its last checkpoint is kept. Exit code 3."""


class RankLost(RunFailed):
    """Another process of the run is gone, and with it its part of the work."""
