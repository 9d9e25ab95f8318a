"""What an exception says of the cell that it ended: a status, and one line."""

from __future__ import annotations

LONGEST_REASON = 500  # characters
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def status_of(error: BaseException) -> tuple[str, str]:
    """(status, reason) of a cell whose work ended with `error`."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return "out_of_memory" if is_out_of_memory(error) else "failed", words[:LONGEST_REASON]


def is_out_of_memory(error: BaseException) -> bool:
    """Python says MemoryError, torch OutOfMemoryError on a GPU, and on a CPU a RuntimeError in words of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
