"""Where the numbers of a training can go besides metrics.jsonl: files or services of others, each an extra.

None of them needs a network: what could send something writes into the phase's folder, unless its own environment
variables say where it is to go.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from data_cache.errors import Notice, UserError, say_reason
from stages.training.settings import TrainingSettings

_PROJECT = "pseudo-depth-pipeline"


class Tracker(Protocol):
    """Takes numbers by name and step."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Take one number."""
        ...

    def close(self) -> None:
        """Write what is still to be written."""
        ...


def open_trackers(settings: TrainingSettings, folder: Path) -> list[Tracker]:
    """Return the trackers that settings ask for; one that fails later is dropped with a word, and ends no training.

    Args:
        folder: of the phase; each writes into one of its own there.

    Raises:
        UserError: one is asked for and not installed, or cannot be opened.
    """
    wanted = {name: _import(name) for name in TRACKERS if getattr(settings, name)}
    opened: list[Tracker] = []
    for name, module in wanted.items():
        try:
            opened.append(_Spared(name, TRACKERS[name](module, folder / name)))
        except Exception as problem:  # services and files of others fail in any way
            for each in opened:
                each.close()
            raise UserError(
                f"training.{name} is on, but {name} cannot be opened: {say_reason(problem)}; look at its environment "
                f"variables, or switch training.{name} off"
            ) from problem
    return opened


class _Spared:
    """A tracker that is asked for nothing more once it has failed."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Take one number."""
        self._try(lambda tracker: tracker.add_scalar(name, value, step))

    def close(self) -> None:
        """Write what is still to be written."""
        self._try(lambda tracker: tracker.close())

    def _try(self, act: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as problem:  # noqa: BLE001 - as above
            self._tracker = None
            warnings.warn(
                f"{self._name} takes no more numbers of this phase ({say_reason(problem)}); metrics.jsonl has them all",
                Notice,
                stacklevel=2,
            )


def _import(name: str) -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as problem:
        raise UserError(
            f"training.{name} is on, but {name} is not installed; install it with: "
            f"pip install '{_PROJECT}[{name}]', or switch training.{name} off"
        ) from problem


class _Wandb:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, wandb: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=_PROJECT, name=folder.parent.name, dir=str(folder), mode=mode, settings=wandb.Settings(silent=True)
        )

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Take one number."""
        self._run.log({name: value, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class _Mlflow:
    """A run of MLflow in files of the folder, unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, mlflow: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which newer versions (seen with 3.17) ask for
        place = os.environ.get("MLFLOW_TRACKING_URI", folder.absolute().as_uri())
        self._client = mlflow.MlflowClient(tracking_uri=place)
        known = self._client.get_experiment_by_name(_PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(_PROJECT)
        self._run = self._client.create_run(experiment, run_name=folder.parent.name).info.run_id

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Take one number."""
        self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[Any, Path], Tracker]] = {
    "tensorboard": lambda module, folder: module.SummaryWriter(log_dir=str(folder)),
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}
"""Name of the setting, the extra and the package → what opens it in a folder."""
