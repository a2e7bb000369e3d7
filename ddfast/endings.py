"""The line and the exit code that the command line makes of whatever ends a command."""

import torch
import typer

from ddfast.errors import RunFailed, UserError
from ddfast.signals import Interrupted


def ending(error: BaseException) -> tuple[str, int]:
    """What is said of an error, and the exit code; 0 for one that is no user's matter and says it itself."""
    memory = torch.OutOfMemoryError, MemoryError
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, RunFailed):
        return str(error), 3
    if isinstance(error, memory) or "can't allocate memory" in str(error):  # the latter is PyTorch's on a CPU
        return f"out of memory, in distill a smaller --memory-budget may help: {error}", 3
    if isinstance(error, Interrupted):
        return f"stopped by {error}", error.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}", 3
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "stopped by SIGINT", 130
    if hasattr(error, "format_message"):  # what Typer raises for a wrong option
        return error.format_message(), 2
    return repr(error), 0
