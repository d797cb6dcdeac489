"""What went wrong, in the words for a person who can repair it."""

from __future__ import annotations

from data_cache.errors import UserError, is_out_of_memory
from data_cache.ranks import is_lost_rank

_LOST = (
    "another process of this job was ended from outside or crashed; torchrun names it below. What was finished is "
    "kept, repeat the command to go on; if memory ran out, start fewer processes or lower --batch-size"
)


def explain_problem(problem: BaseException) -> str | None:
    """Return one clear message for what a person can repair, None for what must be a bug."""
    if isinstance(problem, UserError):
        return str(problem)
    if isinstance(problem, OSError):
        from data_cache.files import explain_os_error

        return explain_os_error(problem)
    if is_lost_rank(problem):
        return _LOST
    if not is_out_of_memory(problem):
        return None
    reason = str(problem).partition("\n")[0] or type(problem).__name__  # Python's own MemoryError says nothing
    return (
        f"the device is out of memory ({reason}); for training lower --batch-size or --set data.crop=[height,width], "
        "for evaluation and prediction use --tile 512 or a smaller one, for an export a smaller --input-size"
    )
