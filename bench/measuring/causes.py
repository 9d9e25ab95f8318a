"""What an exception says of the cell that it ended: a status, and one line."""

from __future__ import annotations

import platform
import re
import signal
from multiprocessing import parent_process
from pathlib import PurePosixPath

LONGEST_REASON = 500  # characters
PATH = re.compile(r"(?<![\w:/~.\\-])(?:/[^\s/:;,'\"()\[\]]+){2,}/?")  # an absolute one, of two names or more
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
    """`words` as a table and a terminal take them: one line of at most LONGEST_REASON characters that UTF-8 has.

    Nor does it say where that was: of a path there is its last name, and no name of the machine.
    """
    line = " ".join(words.strip()[: 10 * LONGEST_REASON].split())  # of ten megabytes not all is looked at
    line = PATH.sub(lambda found: f".../{PurePosixPath(found[0]).name}", line)
    if host := platform.node():
        line = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "this machine", line)
    return line.encode("utf-8", "backslashreplace").decode()[:LONGEST_REASON]


def ends_the_caller(error: BaseException) -> bool:
    """Whether `error` is not about the cell but asks the process that runs it to stop, as Ctrl-C does.

    A worker leaves Ctrl-C to its parent: there whatever is raised is the cell's. SystemExit always is: finished epochs
    are worth more than the end of the process.
    """
    in_worker = parent_process() is not None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return not in_worker and not isinstance(error, Exception | SystemExit)
