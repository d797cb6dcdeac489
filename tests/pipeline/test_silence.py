"""Libraries are silent, notices are shown once, and developers still get to see what they ask for."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, os, warnings
from pipeline.silence import showing_notices, silence_libraries
from data_cache.errors import Notice
silence_libraries()
with showing_notices(print):
    for _ in range(3):
        warnings.warn("a library's", UserWarning)
        warnings.warn("ours", Notice)
    logging.getLogger("library").warning("a library's log line")
"""


@pytest.mark.parametrize(("flags", "heard"), [([], False), (["-W", "always"], True)])
def test_only_notices_are_shown_unless_a_developer_asks(flags, heard):
    done = subprocess.run([sys.executable, *flags, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["note: ours"]
    assert ("a library's" in done.stderr) == heard and "log line" not in done.stderr
