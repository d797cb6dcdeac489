"""A job script for SLURM: an array of processes that share a table's trainings. Imports no torch."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data_cache.outputs import SCRIPT_SEAL
from pipeline.workspace import Workspace

_SCRIPT = """\
#!/bin/bash
{seal}
# {gpus} processes with a GPU each share the trainings of table {table}: sbatch FILE. What SLURM must be told besides
# (account, partition, time limit) goes into lines as below, or before FILE. Handing it in again continues the table.
#SBATCH --job-name=pipeline-{table}
#SBATCH --array=1-{gpus}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:TERM@120
#SBATCH --output=pipeline-{table}-%A-%a.log
work={work}
if [ "$(cat "$work/{token}" 2>/dev/null)" != {secret} ]; then
    echo "error: $work on $(hostname) is not the work directory this was written for; it must lie on a shared disk" >&2
    exit 2
fi
cd {folder} || exit 2
exec {command}
"""


def write_script(table: str, words: Sequence[str], gpus: int, workspace: Workspace) -> str:
    """Return the script, with names that are no text as ``os.fsdecode`` gives them.

    SIGTERM two minutes before the end of its time lets a process save the state of what it is training.

    Args:
        words: what follows ``pipeline table``.
        gpus: how many processes.
    """
    root, token = workspace.root.absolute(), workspace.find_token()
    command = [sys.executable, "-m", "pipeline.cli", "--workdir", str(root), "table", *words, "--wait"]
    return _SCRIPT.format(
        seal=SCRIPT_SEAL,
        table=re.sub(r"[^\w.-]+", "-", Path(table).stem),
        gpus=gpus,
        work=shlex.quote(str(root)),
        token=token.name,
        secret=token.read_text(encoding="ascii"),
        folder=shlex.quote(os.fspath(Path.cwd())),
        command=shlex.join(command),
    )
