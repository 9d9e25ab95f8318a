"""What an exception says of the cell that it ended: a status, and one line."""

from __future__ import annotations

import signal
from multiprocessing import parent_process

LONGEST_REASON = 500  # characters
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def status_of(error: BaseException) -> tuple[str, str]:
    """(status, reason) of a cell whose work ended with `error`."""
    status = "out_of_memory" if is_out_of_memory(error) else "failed"
    return status, one_line(f"{type(error).__name__}: {words_of(error)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Python says MemoryError, torch OutOfMemoryError on a GPU, and on a CPU a RuntimeError in words of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in words_of(error) for words in OUT_OF_MEMORY)


def words_of(error: BaseException) -> str:
    """What an exception says, or that it cannot say it: its __str__ is anybody's code."""
    try:
        return f"{error}"
    except BaseException as problem:
        return f"its __str__ raises {type(problem).__name__}"


def one_line(words: str) -> str:
    """`words` as a table and a terminal take them: one line of at most LONGEST_REASON characters that UTF-8 has."""
    line = " ".join(words.strip()[: 10 * LONGEST_REASON].split())  # of ten megabytes not all is looked at
    return line.encode("utf-8", "backslashreplace").decode()[:LONGEST_REASON]


def ends_the_caller(error: BaseException) -> bool:
    """Whether `error` is not about the cell but asks the process that runs it to stop, as Ctrl-C does.

    A worker leaves Ctrl-C to its parent: there whatever is raised is the cell's. SystemExit always is: finished epochs
    are worth more than the end of the process.
    """
    in_worker = parent_process() is not None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return not in_worker and not isinstance(error, Exception | SystemExit)
