"""The command line: each command parses, loads the recipe, calls one function and prints its result.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from data_cache.errors import UserError, is_out_of_memory, nearest
from data_cache.metrics import explain_metrics
from stages.comparison.formats import FORMATS
from stages.export.formats import DEFAULT_FORMATS, describe_formats, parse_formats

if TYPE_CHECKING:
    from pipeline.commands.advise import Similarity
    from pipeline.console import Console
    from pipeline.experiment.config import RunConfig
    from pipeline.session import Session

Command = Callable[..., None]

RECIPE_FLAGS = {
    "dataset": "data.dataset",
    "data_root": "data.root",
    "workers": "data.workers",
    "estimator": "depth.estimator",
    "kind": "depth.kind",
    "accept_noncommercial": "depth.accept_noncommercial",
    "network": "network.name",
    "encoder": "network.encoder",
    "epochs": "training.epochs",
    "iterations": "training.iterations",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "precision": "training.precision",
    "budget": "training.budget",
    "encoder_policy": "training.encoder_policy",
    "transfer": "training.transfer",
    "compile": "training.compile",
    "seed": "seed",
}
"""Named flags for common keys of a recipe; --set reaches the rest."""


class Commands(click.Group):
    """A group that names the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command, or fail with the nearest name."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], known)}; known: {', '.join(known)}")
        return super().resolve_command(ctx, args)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Stack several click options into one decorator."""
    return lambda command: functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


data_options = _options(
    click.option("--recipe", default="demo", show_default=True, help="Bundled recipe or path of a TOML file."),
    click.option("--dataset", help="Dataset name (see `pipeline datasets`)."),
    click.option("--data-root", help="Folder of the dataset."),
    click.option("--workers", type=int, help="Loader processes."),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override any key of the recipe."),
)
depth_options = _options(
    click.option("--estimator", help="Alias, Hub id, local folder, or `dataset`."),
    click.option("--kind", type=click.Choice(["relative", "metric"]), help="Meaning of an estimator without an alias."),
    click.option("--accept-noncommercial", is_flag=True, default=None, help="Use weights with such a licence."),
)
network_options = _options(
    click.option("--network", help="Network name (see `pipeline networks`)."),
    click.option("--encoder", help="Encoder of the network."),
)
training_options = _options(
    click.option("--epochs", type=int, help="Epochs per phase."),
    click.option("--iterations", type=int, help="Steps per phase instead of epochs."),
    click.option("--batch-size", type=int),
    click.option("--lr", type=float, help="Learning rate."),
    click.option("--precision", type=click.Choice(["auto", "bfloat16", "float32"])),
    click.option("--budget", type=click.Choice(["phase", "total"]), help="Epochs per phase, or shared by all phases."),
    click.option(
        "--encoder-policy",
        type=click.Choice(["train", "freeze", "low-lr", "always-freeze", "always-low-lr"]),
        help="What the encoder does in phases of one decoder, or always.",
    ),
    click.option(
        "--transfer",
        type=click.Choice(["feature-extractor", "low-level-extractor", "fine-tune", "scratch"]),
        help="How much of the encoder's pretraining is kept (see `pipeline advise`).",
    ),
    click.option("--compile/--no-compile", default=None, help="Compile the network with torch.compile."),
)
table_options = _options(
    click.option("--baseline", help="Row that differences are taken to; default the table's, else seg-only."),
    click.option("--table", "of_table", metavar="NAME", help="Only runs of rows of this table, in its order."),
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
margin_option = click.option(
    "--margin", type=int, show_default="64", help="What the network sees around a tile, px; with --tile only."
)
seed_option = click.option("--seed", type=int, help="Seed of initial weights, data order and augmentation.")


def _config(recipe: str, assignments: Sequence[str], **flags: Any) -> RunConfig:
    from pipeline.experiment.config import load_config

    return load_config(recipe, {RECIPE_FLAGS[name]: value for name, value in flags.items()}, assignments)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--workdir", metavar="DIR", help="Where artifacts live; else $PIPELINE_WORKDIR, else ./artifacts.")
@click.option("--json", "json_mode", is_flag=True, help="Print exactly one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="pseudo-depth-pipeline")
@click.pass_context
def cli(ctx: click.Context, workdir: str | None, json_mode: bool, quiet: bool) -> None:
    """Train segmentation networks with pseudo depth by phase schedules, compare, and ship without the depth decoder."""
    from pipeline.session import Session

    ctx.obj = Session.start(workdir, json_mode=json_mode, quiet=quiet)


@cli.command()
@click.option("--recipe", default="demo", show_default=True, help="Bundled recipe or path of a TOML file.")
@device_option
@click.pass_obj
def demo(session: Session, recipe: str, device: str) -> None:
    """Run everything offline on drawn scenes: label, train two schedules, compare, export, report."""
    from pipeline.commands.demo import run_demo

    session.show(run_demo(session, recipe, device))


@cli.command("pseudo-depth")
@data_options
@depth_options
@click.option("--split", "splits", multiple=True, help="Repeatable; default train and the reported split.")
@click.option("--batch-size", type=int, help="Images per forward pass.")
@click.option("--compile/--no-compile", "compile_model", default=False, help="Compile the estimator.")
@device_option
@click.pass_obj
def pseudo_depth(
    session: Session,
    recipe: str,
    assignments: Sequence[str],
    splits: Sequence[str],
    batch_size: int | None,
    compile_model: bool,
    device: str,
    **flags: Any,
) -> None:
    """Label the images of a dataset with pseudo depth into an HDF5 store."""
    from pipeline.experiment.artifacts import label_splits

    sized = [] if batch_size is None else [f"depth.batch_size={batch_size}"]
    config = _config(recipe, (*assignments, *sized), **flags)
    result = label_splits(config, session, tuple(splits), device, compile_model=compile_model)
    session.show(result)
    if result.json["failed"]:
        raise SystemExit(2)


@cli.command()
@data_options
@depth_options
@network_options
@training_options
@seed_option
@click.option("--schedule", help="Row of `pipeline schedules`, for example depth-first or depth-first+copy.")
@click.option("--copy-weights/--no-copy-weights", default=None, help="Copy the first decoder onto the other.")
@click.option("--no-reuse", is_flag=True, help="Train every phase for this run alone.")
@device_option
@click.pass_obj
def run(
    session: Session,
    recipe: str,
    assignments: Sequence[str],
    schedule: str | None,
    copy_weights: bool | None,
    no_reuse: bool,
    device: str,
    **flags: Any,
) -> None:
    """Train one schedule and evaluate it."""
    from pipeline.commands.run import train_one

    config = _config(recipe, (*_schedule_assignments(schedule, copy_weights), *assignments), **flags)
    session.show(train_one(config, session, device, reuse=not no_reuse))


def _schedule_assignments(schedule: str | None, copy_weights: bool | None) -> list[str]:
    """Turn the schedule flags into assignments; naming a schedule puts the recipe's own steps and copy aside."""
    assignments = []
    if schedule is not None:
        base, _, copy = schedule.partition("+")
        if copy not in ("", "copy"):
            raise UserError(f"unknown schedule {schedule!r}; the only suffix is +copy")
        assignments += [f"schedule.name={base!r}", "schedule.steps=[]"]
        assignments.append(f"schedule.copy_weights={str(bool(copy)).lower()}")
    if copy_weights is not None:
        assignments.append(f"schedule.copy_weights={str(copy_weights).lower()}")
    return assignments


@cli.command()
@click.argument("name", required=False)
@data_options
@depth_options
@network_options
@training_options
@click.option("--seeds", help="Comma-separated seeds of a table.")
@seed_option
@click.option("--schedule", help="Row of `pipeline schedules`.")
@click.option("--copy-weights/--no-copy-weights", default=None)
@click.option("--no-reuse", is_flag=True)
@click.pass_obj
def plan(
    session: Session,
    name: str | None,
    recipe: str,
    assignments: Sequence[str],
    seeds: str | None,
    schedule: str | None,
    copy_weights: bool | None,
    no_reuse: bool,
    **flags: Any,
) -> None:
    """Print what a run, or the table NAME, would do; trains nothing."""
    from pipeline.commands.plan import preview_plan

    config = _config(recipe, (*_schedule_assignments(schedule, copy_weights), *assignments), **flags)
    session.show(preview_plan(config, session, name, _parse_seeds(seeds), reuse=not no_reuse))


@cli.command()
@click.argument("name")
@data_options
@depth_options
@network_options
@training_options
@click.option("--seeds", help="Comma-separated, for example 0,1,2; default the recipe's one, for fcn8s 0,1,2.")
@click.option("--no-reuse", is_flag=True, help="Train every row alone.")
@device_option
@click.pass_obj
def table(
    session: Session,
    name: str,
    recipe: str,
    assignments: Sequence[str],
    seeds: str,
    no_reuse: bool,
    device: str,
    **flags: Any,
) -> None:
    """Train all rows of the table NAME and compare them."""
    from pipeline.commands.run import train_table

    config = _config(recipe, assignments, **flags)
    session.show(train_table(name, config, session, device, _parse_seeds(seeds), reuse=not no_reuse))


def _parse_seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--seeds {text!r} is no list of whole numbers; write for example 0,1,2") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r} must be different numbers of at least 0")
    return seeds


@cli.command()
@click.argument("model", metavar="RUN|EXPORT")
@click.option("--split", help="Split to score; default the run's reported split.")
@click.option("--size", type=click.Choice(["original", "recipe"]), help="Size at which images enter the network.")
@click.option("--data-root", help="Folder of the dataset, if it moved.")
@click.option("--save-predictions", type=click.Path(path_type=Path), help="Write label-id PNGs here.")
@click.option("--tile", type=int, help="Run the network in tiles of this side, px.")
@margin_option
@device_option
@click.pass_obj
def evaluate(
    session: Session,
    model: str,
    split: str | None,
    size: str | None,
    data_root: str | None,
    save_predictions: Path | None,
    tile: int | None,
    margin: int | None,
    device: str,
) -> None:
    """Score a run or an export folder on a split."""
    from pipeline.commands.evaluate import score_model
    from pipeline.experiment.devices import choose_device

    changes = {"evaluation.split": split, "evaluation.size": size, "data.root": data_root}
    session.show(
        score_model(session, model, changes, save_predictions, choose_device(device), tile=tile, margin=margin)
    )


@cli.command(epilog="Metrics:\n\n" + "\n\n".join(explain_metrics()))
@click.argument("runs", nargs=-1, metavar="[RUN…]")
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="text")
@table_options
@click.pass_obj
def compare(session: Session, runs: Sequence[str], form: str, baseline: str | None, of_table: str | None) -> None:
    """Put runs side by side; all finished runs by default."""
    from pipeline.commands.compare import compare_runs

    session.show(compare_runs(session, runs, form, baseline, of_table))


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN…]")
@click.option("--out", type=click.Path(path_type=Path), help="HTML file; default <workdir>/report.html.")
@table_options
@click.pass_obj
def report(session: Session, runs: Sequence[str], out: Path | None, baseline: str | None, of_table: str | None) -> None:
    """Write one self-contained page about runs; all finished runs by default."""
    from pipeline.commands.compare import report_runs

    session.show(report_runs(session, runs, out, baseline, of_table))


@cli.command()
@click.argument("model", metavar="RUN|EXPORT")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for label maps and overlays.")
@click.option("--tile", type=int, help="Cut larger images into tiles of this side, px.")
@margin_option
@device_option
@click.pass_obj
def predict(
    session: Session, model: str, images: Sequence[Path], out: Path, tile: int | None, margin: int | None, device: str
) -> None:
    """Write label maps and overlays of image files."""
    from pipeline.commands.evaluate import predict_images
    from pipeline.experiment.devices import choose_device

    session.show(predict_images(session, model, images, out, choose_device(device), tile=tile, margin=margin))


@cli.command()
@click.argument("run_name", required=False, metavar="[RUN]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default <workdir>/exports/<run>.")
@click.option(
    "--formats",
    default=",".join(DEFAULT_FORMATS),
    show_default=True,
    callback=lambda _context, _option, text: parse_formats(text),
    help=f"Comma-separated; {describe_formats()}.",
)
@click.option("--input-size", type=(int, int), metavar="H W", help="Size the files are made for; default the data's.")
@click.option("--dynamic", is_flag=True, help="Let ONNX and pt2 files take other image sizes; proven at four.")
@click.option("--overwrite", is_flag=True, help="Replace another export that lies there.")
@click.pass_obj
def export(
    session: Session,
    run_name: str | None,
    out: Path | None,
    formats: tuple[str, ...],
    input_size: tuple[int, int] | None,
    dynamic: bool,
    overwrite: bool,
) -> None:
    """Strip the depth branch off a run (the newest by default), write it out, and prove it equal."""
    from pipeline.commands.export import export_run

    session.show(
        export_run(session, run_name, out, formats=formats, input_size=input_size, dynamic=dynamic, overwrite=overwrite)
    )


@cli.command()
@data_options
@click.option("--kind", type=click.Choice(["relative", "metric"]), help="Meaning of --init where nothing says it.")
@click.option("--accept-noncommercial", is_flag=True, default=None, help="Start from weights with such a licence.")
@click.option("--init", default="mini", show_default=True, help="A size (from nothing), or an estimator to adapt.")
@click.option("--steps", type=int, default=2000, show_default=True)
@click.option("--batch-size", type=int, default=16, show_default=True)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Peak learning rate; 1e-5 for large teachers.")
@click.option("--input-size", type=int, help="Side the images are brought to, px; default the estimator's.")
@click.option("--jitter", type=float, default=0.2, show_default=True, help="Strength of colour jitter.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder that from_pretrained opens.")
@device_option
@click.pass_obj
def teach(
    session: Session,
    recipe: str,
    assignments: Sequence[str],
    init: str,
    steps: int,
    batch_size: int,
    lr: float,
    input_size: int | None,
    jitter: float,
    seed: int,
    out: Path,
    device: str,
    **flags: Any,
) -> None:
    """Train a depth estimator on a dataset that brings ground-truth depth."""
    from pipeline.experiment.artifacts import teach_estimator
    from stages.pseudo_depth.teach import TeachOptions

    config = _config(recipe, assignments, **flags)
    options = TeachOptions(steps, batch_size, lr, jitter=jitter, input_size=input_size, seed=seed)
    session.show(teach_estimator(config, session, init, out, device=device, options=options))


@cli.command()
@click.argument("names", nargs=-1, metavar="[ESTIMATOR|encoder:NAME]…")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default <workdir>/estimators.")
@click.option("--kind", type=click.Choice(["relative", "metric"]), help="Meaning of an estimator without an alias.")
@click.option("--accept-noncommercial", is_flag=True, help="Fetch weights with such a licence.")
@click.pass_obj
def fetch(
    session: Session, names: Sequence[str], out: Path | None, kind: str | None, accept_noncommercial: bool
) -> None:
    """Bring estimator and encoder weights, for use on a machine without network."""
    from pipeline.commands.fetch import fetch_weights

    session.show(fetch_weights(session, names, out, kind=kind, accept_noncommercial=accept_noncommercial))


@cli.group()
def cache() -> None:
    """Look after depth stores: info, verify, repair, preview, export."""


store_argument = click.argument("store", required=False, type=click.Path(path_type=Path))


@cache.command("info")
@store_argument
@click.pass_obj
def cache_info(session: Session, store: Path | None) -> None:
    """Show images, size and provenance of STORE, or of all stores."""
    from pipeline.commands.cache import find_stores, show_stores

    session.show(show_stores(find_stores(session, store)))


@cache.command("verify")
@store_argument
@click.pass_obj
def cache_verify(session: Session, store: Path | None) -> None:
    """Read every map of STORE, or of all stores, and compare checksums."""
    from pipeline.commands.cache import check_stores, find_stores

    result = check_stores(find_stores(session, store))
    session.show(result)
    if result.json["bad"]:
        raise SystemExit(2)


@cache.command("repair")
@store_argument
@click.pass_obj
def cache_repair(session: Session, store: Path | None) -> None:
    """Drop damaged maps of STORE, or of all stores; label again to make them anew."""
    from pipeline.commands.cache import find_stores, repair_stores

    session.show(repair_stores(find_stores(session, store)))


@cache.command("preview")
@data_options
@depth_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default <workdir>/previews.")
@click.pass_obj
def cache_preview(session: Session, recipe: str, assignments: Sequence[str], out: Path | None, **flags: Any) -> None:
    """Draw contact sheets of a recipe's images beside their depth."""
    from pipeline.commands.cache import preview_labels

    session.show(preview_labels(_config(recipe, assignments, **flags), session, out))


@cache.command("export")
@store_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default <workdir>/depth-maps.")
@click.option("--form", type=click.Choice(["png16", "npy"]), default="png16", show_default=True)
@click.pass_obj
def cache_export(session: Session, store: Path | None, out: Path | None, form: str) -> None:
    """Write the maps of STORE, or of all stores, as 16-bit PNG or NPY files."""
    from pipeline.commands.cache import export_maps, find_stores

    session.show(export_maps(session, find_stores(session, store), out, form))


@cli.command()
@click.argument("name", required=False)
@click.option("--data-root", help="Folder of the dataset.")
@click.pass_obj
def datasets(session: Session, name: str | None, data_root: str | None) -> None:
    """List datasets; with NAME examine one: pairing, ids, palette, void, sizes, classes."""
    from pipeline.commands.listing import examine_dataset, list_datasets

    result = examine_dataset(session, name, data_root) if name else list_datasets()
    session.show(result)
    if result.json.get("problems"):
        raise SystemExit(2)


@cli.command()
@click.pass_obj
def networks(session: Session) -> None:
    """List networks with their options and parameters."""
    from pipeline.commands.listing import list_networks

    session.show(list_networks())


@cli.command()
@click.pass_obj
def schedules(session: Session) -> None:
    """List schedules with their phases and the paper's scores."""
    from pipeline.commands.listing import list_schedules

    session.show(list_schedules())


@cli.command()
@click.pass_obj
def estimators(session: Session) -> None:
    """List depth estimators with kind, size multiple and licence."""
    from pipeline.commands.listing import list_estimators

    session.show(list_estimators())


@cli.command()
@click.pass_obj
def recipes(session: Session) -> None:
    """List recipes with their cards."""
    from pipeline.commands.listing import list_recipes

    session.show(list_recipes())


@cli.command()
@click.option("--images", type=int, required=True, help="Number of training images.")
@click.option(
    "--similarity",
    type=click.Choice(["similar", "different"]),
    required=True,
    help="Of your images to those of the pretraining (ImageNet: photographs of single things).",
)
@click.option("--input-size", help="Pixels, or small-objects, balanced (default), fast.")
@click.option("--target", help="Where the network will run: accuracy (default), edge or cpu.")
@click.option("--small-below", type=int, help="Fewer images than this are few (default 1000; the lecture has none).")
@click.option("--remeasure", is_flag=True, help="Measure the encoders again.")
@click.pass_obj
def advise(
    session: Session,
    images: int,
    similarity: Similarity,
    remeasure: bool,
    **choices: Any,
) -> None:
    """Say how to use pretrained weights, which encoder, network and image size to take, and what they cost here."""
    from pipeline.commands.advise import give_advice

    given = {name: value for name, value in choices.items() if value is not None}
    session.show(give_advice(session, images=images, similarity=similarity, remeasure=remeasure, **given))


@cli.command()
@click.pass_obj
def doctor(session: Session) -> None:
    """Check machine, versions, GPU, locking, disk; say what is missing and how to mend it."""
    from pipeline.commands.doctor import examine_machine

    result = examine_machine(session)
    session.show(result)
    if not all(check["ok"] for check in result.json["checks"]):
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 the user can mend it, 1 a bug, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(arguments))


def _show_warning(
    console: Console,
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *place: Any,
    **more: Any,
) -> None:
    """Show what a person is warned of as one line; what programmers are warned of as Python does."""
    if category is UserWarning:
        console.say(f"warning: {message}")
    else:
        show(message, category, *place, **more)


def _run(arguments: list[str]) -> int:
    from pipeline.console import Console
    from pipeline.workspace import explain_os_error

    console = Console(json_mode="--json" in arguments, quiet="--quiet" in arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = functools.partial(_show_warning, console, warnings.showwarning)
            status = cli.main(args=arguments, prog_name="pipeline", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except UserError as problem:
        console.fail(str(problem))
        return 2
    except click.ClickException as problem:
        console.fail(problem.format_message())
        return problem.exit_code
    except (KeyboardInterrupt, click.Abort) as interruption:
        told = str(interruption.__cause__ or interruption)  # click wraps the one that was raised
        console.fail(told or "what was done is kept, the same command continues", label="interrupted")
        return 130
    except BrokenPipeError:  # the reader of stdout went away, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain while closing it
        return 0
    except OSError as problem:
        message = explain_os_error(problem)
        if message is None:
            raise
        console.fail(message)
        return 2
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        reason = str(problem).partition("\n")[0] or type(problem).__name__  # Python's own MemoryError says nothing
        console.fail(
            f"the device is out of memory ({reason}); for training lower --batch-size or --set "
            "data.crop=[height,width], for evaluation and prediction use --tile 512 or a smaller one"
        )
        return 2


if __name__ == "__main__":
    main()
