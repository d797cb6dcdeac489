"""The pipeline from Python; the same functions as the command line's, without its prints.

    import pipeline

    pipeline.label("demo")                                               # images → depth stores
    run = pipeline.train("demo", schedule="depth-first", copy_weights=True)
    pipeline.train("demo", schedule="seg-only")                          # what it has to beat
    rows = pipeline.compare()                                            # list of dicts: pandas.DataFrame(rows)
    export = pipeline.export(run)                                        # without the depth decoder, proven equal
    labels, probabilities, depth = pipeline.load(export).predict("street.jpg")

Nothing heavy is imported before a function is called. What is going on goes to the logger ``pipeline``, what a person
should know is warned of as ``Notice``, and what a person can repair is raised as ``UserError``. What is made lies in
``workdir``, else ``$PIPELINE_WORKDIR``, else ``./artifacts``, where the command line finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.errors import Notice, UserError

if TYPE_CHECKING:
    from data_cache.datasets.interface import SegmentationDataset
    from data_cache.depth_store import DepthStore
    from pipeline.commands.evaluate import Scored
    from pipeline.commands.export import Exported
    from pipeline.commands.run import Trained
    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.models import Model
    from stages.pseudo_depth.labelling import LabelReport

AnyPath = str | PathLike[str]
__all__ = [
    "Notice",
    "UserError",
    "compare",
    "depth_store",
    "evaluate",
    "export",
    "label",
    "load",
    "open_split",
    "train",
]


def label(
    recipe: AnyPath = "demo",
    *,
    splits: Sequence[str] = (),
    device: str = "auto",
    workdir: AnyPath | None = None,
    **changes: Any,
) -> list[LabelReport]:
    """Label the images of a recipe with pseudo depth; what is labelled already is skipped.

    Args:
        recipe: name of a bundled one, or a TOML file.
        splits: none means those that the recipe trains on and is scored on.
        device: auto, cpu, cuda, cuda:1, …
        workdir: where artifacts live.
        changes: of the recipe; see ``train``.

    Returns:
        Per split its ``store`` (a folder for ``depth_store``), the numbers of ``images``, ``labelled``, ``skipped``,
        and those that ``failed``, with why.
    """
    from pipeline.commands.pseudo_depth import label_splits
    from pipeline.session import Session

    return label_splits(_read_recipe(recipe, changes), Session.for_library(workdir), tuple(splits), device)


def train(
    recipe: AnyPath = "demo",
    *,
    device: str = "auto",
    reuse: bool = True,
    wait: bool = False,
    workdir: AnyPath | None = None,
    **changes: Any,
) -> Trained:
    """Train one schedule of a recipe, but for phases that are trained already, and score its last weights.

    Args:
        recipe: name of a bundled one, or a TOML file.
        device: auto, cpu, cuda, cuda:1, …
        reuse: whether phases that other runs have trained count.
        wait: whether to wait for what other processes are working on.
        workdir: where artifacts live.
        changes: of the recipe, called like the flags of ``pipeline run`` (``schedule="seg-only"``, ``lr=1e-3``,
            ``network="my_pkg.nets:Tiny"``), or by the path of the key: ``**{"data.crop": (96, 128)}``.

    Returns:
        The run: ``folder``, ``metrics`` by name (shares in [0, 1]), ``phases``, ``notes``.
    """
    from pipeline.commands.run import train_one
    from pipeline.experiment.provenance import as_command
    from pipeline.options import find_paths, write_options
    from pipeline.session import Session

    session, config = Session.for_library(workdir), _read_recipe(recipe, changes)
    sets = write_options(find_paths(changes))
    with as_command(["pipeline", *_say_workdir(workdir), "run", "--recipe", fspath(recipe), *sets]):
        return train_one(config, session, device, reuse=reuse, wait=wait)


def load(model: AnyPath, *, format: str | None = None, device: str = "auto", workdir: AnyPath | None = None) -> Model:
    """Open a trained model.

    Args:
        model: what ``train`` or ``export`` returned, folder or name of a run, an export folder, or one of its files.
        format: of an export folder, for example ``onnx``; its weights (``safetensors``) unless told.
        device: auto, cpu, cuda, cuda:1, …
        workdir: where runs are looked for by name.

    Returns:
        The model: ``predict(image or path)``, ``class_names``, ``palette``, ``config`` (the recipe of its run).
    """
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.models import open_model
    from pipeline.session import Session

    return open_model(Session.for_library(workdir), fspath(model), choose_device(device), format)


def evaluate(
    model: AnyPath,
    *,
    split: str | None = None,
    data_root: AnyPath | None = None,
    size: str | None = None,
    recipe: AnyPath | None = None,
    format: str | None = None,
    tile: int | None = None,
    margin: int | None = None,
    save_predictions: AnyPath | None = None,
    device: str = "auto",
    workdir: AnyPath | None = None,
) -> Scored:
    """Score a run, an export or one of its files on a split.

    Args:
        model: as of ``load``.
        split: None is the one that the run reports.
        data_root: folder of the dataset, if it moved.
        size: ``original`` or ``recipe``: at what size images enter a run's network; exports have theirs.
        recipe: whose data a file is scored on that lies outside of its export folder.
        format: of an export folder.
        tile: side of tiles, px.
        margin: what the network sees around a tile, px.
        save_predictions: folder for label-id PNGs.
        device: auto, cpu, cuda, cuda:1, …
        workdir: where artifacts live.

    Returns:
        ``metrics`` by name (shares in [0, 1]), ``evaluation`` with ``per_class``, ``confusion`` [truth][prediction] in
        pixels and ``image_scores``, ``split``, ``notes``.
    """
    from pipeline.commands.evaluate import score_model
    from pipeline.experiment.devices import choose_device
    from pipeline.session import Session

    root = None if data_root is None else fspath(data_root)
    return score_model(
        Session.for_library(workdir),
        fspath(model),
        {"evaluation.split": split, "evaluation.size": size, "data.root": root},
        None if save_predictions is None else Path(save_predictions),
        choose_device(device),
        recipe=None if recipe is None else fspath(recipe),
        format=format,
        tile=tile,
        margin=margin,
    )


def compare(
    runs: Sequence[AnyPath] = (),
    *,
    baseline: str | None = None,
    table: str | None = None,
    across: bool = False,
    workdir: AnyPath | None = None,
) -> list[dict[str, str | int | float | None]]:
    """Put runs side by side: one record a row, over its seeds, for ``pandas.DataFrame``.

    Args:
        runs: none means all finished ones.
        baseline: row that differences are taken to; None is the table's own, else seg-only.
        table: only runs of rows of this table.
        across: whether runs of different data, splits or numerics may stand one under another.
        workdir: where runs are looked for.

    Returns:
        As in ``pipeline compare --format csv``: ``name``, ``num_seeds``, ``total_steps``, and per metric its mean
        ``miou_macro``, half of its 95 % interval ``…_ci95``, the paired difference ``…_diff`` to ``baseline`` with
        ``…_diff_ci95`` and ``…_diff_p``; shares are in [0, 1]; None where there is none.
    """
    from pipeline.commands.compare import compare_runs
    from pipeline.session import Session
    from stages.comparison.formats import list_records

    session, references = Session.for_library(workdir), [fspath(run) for run in runs]
    return list_records(compare_runs(session, references, baseline, table, across=across))


def export(
    run: AnyPath | None = None,
    out: AnyPath | None = None,
    *,
    formats: Sequence[str] | None = None,
    input_size: tuple[int, int] | None = None,
    dynamic: bool | None = None,
    benchmark: bool = True,
    overwrite: bool = False,
    workdir: AnyPath | None = None,
) -> Exported:
    """Write a run without its depth branch, and prove it equal.

    Args:
        run: what ``train`` returned, or the folder or name of a run; None is the newest.
        out: folder; None is one below ``workdir``.
        formats: for example ``("safetensors", "onnx")``; None is the command line's choice.
        input_size: (height, width) that images are resized to, px.
        dynamic: whether images keep their own size; None as they entered the run's evaluation, where that can be.
        benchmark: whether to measure the latency and memory of each file.
        overwrite: whether to replace another export that lies there.
        workdir: where artifacts live.

    Returns:
        The export: ``out`` (the folder), ``report`` with ``files`` and ``proof``.
    """
    from pipeline.commands.export import export_run
    from pipeline.experiment.provenance import as_command
    from pipeline.session import Session
    from stages.export.formats import DEFAULT_FORMATS, parse_formats

    chosen = DEFAULT_FORMATS if formats is None else parse_formats(",".join(formats))
    reference = None if run is None else fspath(run)
    words = ["export", *([reference] if reference else []), *([] if out is None else ["--out", fspath(out)])]
    words += ["--formats", ",".join(chosen)]
    if input_size is not None:
        words += ["--input-size", *map(str, input_size)]
    elif dynamic is not None:
        words.append("--dynamic" if dynamic else "--fixed")
    with as_command(["pipeline", *_say_workdir(workdir), *words, *([] if benchmark else ["--no-benchmark"])]):
        return export_run(
            Session.for_library(workdir),
            reference,
            None if out is None else Path(out),
            formats=chosen,
            input_size=input_size,
            dynamic=False if input_size else dynamic,
            benchmark=benchmark,
            overwrite=overwrite,
        )


def open_split(
    recipe: AnyPath = "demo", split: str = "val", *, workdir: AnyPath | None = None, **changes: Any
) -> SegmentationDataset:
    """Open one split of a recipe's images.

    Args:
        recipe: name of a bundled one, or a TOML file.
        split: train, val, test, or unlabelled for its images without masks.
        workdir: where drawn images are kept.
        changes: of the recipe; see ``train``.

    Returns:
        ``image_ids``, ``classes``, ``palette``; by index ``read_image`` (H, W, 3) uint8 RGB and ``read_labels`` (H, W)
        uint8 class indices, 255 where void.
    """
    from pipeline.experiment import artifacts
    from pipeline.session import Session

    return artifacts.open_split(_read_recipe(recipe, changes), Session.for_library(workdir).workspace, split)


def depth_store(path: AnyPath) -> DepthStore:
    """Open a depth store.

    Args:
        path: its folder, or the ``index.h5`` in it.

    Returns:
        ``store[image_id]`` is (h, w) float32 at the estimator's resolution, nan where unknown, in the unit that
        ``store.provenance`` names: inverse depth (large is near) or metres; ``for image_id in store``, ``len(store)``.
    """
    from data_cache.depth_store import DepthStore

    found = Path(path)
    return DepthStore(found.parent if found.name == "index.h5" else found)


def _say_workdir(workdir: AnyPath | None) -> list[str]:
    return [] if workdir is None else ["--workdir", fspath(workdir)]


def _read_recipe(recipe: AnyPath, changes: dict[str, Any]) -> RunConfig:
    from pipeline.experiment.config import check_estimator_asked, load_config
    from pipeline.options import find_paths

    given = {k: fspath(value) if isinstance(value, PathLike) else value for k, value in find_paths(changes).items()}
    config = load_config(fspath(recipe), given)
    check_estimator_asked(config, given)
    return config
