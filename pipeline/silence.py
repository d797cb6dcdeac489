"""No library speaks to a person: its warnings, log lines and progress bars are silenced here, before it is imported.

What matters of them is raised as a ``UserError`` or warned of as a ``Notice`` where it happens. A developer hears the
warnings with ``python -W default`` or ``PYTHONWARNINGS=default``, and the rest with the variables below.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from data_cache.errors import Notice

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TQDM_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "FATAL",
}


def silence_libraries() -> None:
    """Set, where the user has not, the variables that libraries and worker processes read when they start."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of worker processes; this one has read it already
    logging.getLogger().addHandler(logging.NullHandler())  # else Python shows the warnings of loggers without one


@contextmanager
def showing_notices(show_notice: Callable[[str], None]) -> Iterator[None]:
    """Show notices, each once; other warnings not at all, or as Python does where a developer asked for them."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        warnings.showwarning = functools.partial(_show, functools.cache(show_notice), warnings.showwarning)
        yield


def _show(
    show_notice: Callable[[str], None],
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *place: Any,
    **more: Any,
) -> None:
    if issubclass(category, Notice):
        show_notice(f"note: {message}")
    else:
        show(message, category, *place, **more)
