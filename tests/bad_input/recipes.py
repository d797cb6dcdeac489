"""Recipes, and options of the command line, that mean nothing, too much, or two things at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bad_input.world import Answer, Case, World

Prepare = Callable[[World], Sequence[str | Path]]
STEP = '[[schedule.steps]]\nphase = "x"\ntrains = ["encoder", "seg-branch"]\nseg = 1.0\n'
OWN = '[data]\ndataset = "scenes"\n'
SHALLOW = "nested more than 16 levels deep"


def _file(content: bytes | str, *words: str) -> Prepare:
    """Return the plan of a recipe with this content."""

    def prepare(world: World) -> Sequence[str | Path]:
        path = world.root / "own.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["plan", "--recipe", path, *words]

    return prepare


def _table(row: str) -> Prepare:
    """Return the plan of a table with this one row."""

    def prepare(world: World) -> Sequence[str | Path]:
        path = world.root / "sweep.toml"
        path.write_text(f"[[table.rows]]\n{row}\n")
        return world.with_recipe("plan", path)

    return prepare


def _plan(*words: str) -> Prepare:
    """Return the plan of segmentation alone by the world's recipe, with more words."""
    return lambda world: world.with_recipe("plan", "--schedule", "seg-only", *words)


def _set(assignment: str) -> Prepare:
    return _plan("--set", assignment)


def _set_all(*assignments: str) -> Prepare:
    return _plan(*(word for assignment in assignments for word in ("--set", assignment)))


def _schedule(content: str) -> Prepare:
    """Return the plan of a schedule's file with this content."""

    def prepare(world: World) -> Sequence[str | Path]:
        path = world.root / "steps.toml"
        path.write_text(content)
        return world.with_recipe("plan", "--schedule", path)

    return prepare


def _place(make: Callable[[Path], object]) -> Prepare:
    """Return the plan of a recipe whose path is something else than a file."""

    def prepare(world: World) -> Sequence[str | Path]:
        path = world.root / "own.toml"
        make(path)
        return ["plan", "--recipe", path]

    return prepare


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


def _three_iterations(world: World, answer: Answer) -> None:
    assert [phase["steps"] for phase in answer.json["phases"]] == [6], "three passes over four images, two a step"


def _without_depth(world: World) -> Sequence[str | Path]:
    return ["--workdir", world.root / "elsewhere", *world.with_recipe("plan", "--set", "network.encoder_depth=99")]


def _given(make: Callable[[Path], object]) -> Prepare:
    """Return a selection of images beside a list of those that are labelled already."""

    def prepare(world: World) -> Sequence[str | Path]:
        path = world.root / "given.txt"
        make(path)
        return world.with_recipe("select", "--budget", "2", "--given", path, "--by", "random")

    return prepare


CASES = [
    # what is no recipe
    Case(
        "a recipe's file without its suffix",
        lambda world: ["plan", "--recipe", world.recipe.with_suffix(".tml")],
        ("unknown recipe", "did you mean '", "recipe.toml"),
    ),
    Case("a pipe as recipe", _place(os.mkfifo), ("own.toml", "it is no file")),
    Case("a device as recipe", _place(lambda path: path.symlink_to("/dev/zero")), ("own.toml", "it is no file")),
    Case("a folder as recipe", _place(Path.mkdir), ("own.toml", "it is no file")),
    Case("a link to itself as recipe", _place(lambda path: path.symlink_to(path)), ("own.toml", "cannot read")),
    Case("a recipe of 1 GB", _place(_large), ("own.toml", "larger than 100,000 bytes")),
    Case("an empty recipe", _file(b"# nothing yet\n"), ("own.toml", "is empty", "pipeline recipes")),
    Case("a recipe in UTF-16", _file("[data]\n".encode("utf-16")), ("own.toml", "byte 0 is not UTF-8")),
    Case("a recipe with NUL characters", _file(b"[data]\0\n"), ("own.toml", "not valid TOML", "line 1")),
    Case("a recipe that sets a key twice", _file("[data]\nflip = 0.5\nflip = 1.0\n"), ("not valid TOML", "line 3")),
    Case("a recipe whose dotted keys clash", _file("data.crop = [64, 64]\ndata.crop.x = 1\n"), ("not valid TOML",)),
    # what no setting takes
    Case("arrays 5,000 deep", _file("x = " + "[" * 5000 + "]" * 5000), ("own.toml", SHALLOW)),
    Case("tables 5,000 deep", _file(".".join("a" * 5000) + " = 1"), ("own.toml", SHALLOW)),
    Case("dotted keys 30 deep", _file(".".join("a" * 30) + " = 1"), ("own.toml", SHALLOW)),
    Case("arrays 2,000 deep in --set", _set("network.x=" + "[" * 2000 + "]" * 2000), ("--set", SHALLOW)),
    Case("a number of 5,000 digits", _file("seed = 1" + "0" * 5000), ("own.toml", "a number that no setting can take")),
    Case("a number of 5,000 digits in --set", _set("training.epochs=1" + "0" * 5000), ("--set", "no setting can take")),
    Case("a number of 20,000 bits", _file("seed = 0x" + "f" * 5000), ("seed", "20000 bits")),
    Case("a date where a name belongs", _file("[data]\ndataset = 2020-01-01"), ("data.dataset", "put it in quotes")),
    Case("a NUL character in a text", _file('[data]\nroot = "a\\u0000b"'), ("data.root", "NUL character")),
    Case("an option of scenes that is no number", _set("data.options.seed=nan"), ("data.options.seed", "finite")),
    Case("true where a number belongs", _set("training.epochs=true"), ("training.epochs", "integer", "found True")),
    Case("a crop of one number", _set("data.crop=[64]"), ("data.crop", "a longer list", "found (64,)")),
    Case("an unknown key with escape sequences", _set("tr\x1b[31m.lr=1"), (r"unknown key 'tr\\x1b[31m'",)),
    Case("a key of the recipe with an empty part", _set("training..lr=1"), ("'training..lr' is no key", "--keys")),
    Case("--set with two lines", _set("training.lr=1\nx=2"), ("training.lr", r"found '1\\nx=2'")),
    Case("a recipe that names itself", _file(f'recipe = "demo"\n{OWN}'), ("'recipe' is kept for the name",)),
    # controls
    Case(
        "a control of shuffled depth without a store",
        lambda world: ["--workdir", world.root / "elsewhere", *world.with_recipe("plan", "--depth-source", "shuffled")],
        ("'shuffled' gives each image another one's map", "no depth store", "pipeline pseudo-depth", "gray"),
    ),
    Case(
        "metres asked of a control",
        lambda world: world.with_recipe("plan", "--depth-source", "gray", "--set", "depth.target=metric"),
        ("depth.target 'metric'", "'gray'", "another target"),
    ),
    # tables of a person's own
    Case("a table with an unknown row key", _table("nam = 'a'"), ("unknown key 'table.rows.0.nam'", "known here: ")),
    Case(
        "a table with an unknown setting",
        _table("name = 'a'\nchanges = {training.lrr = 1.0}"),
        ("table row 'a'", "unknown key 'training.lrr'"),
    ),
    Case("a table whose baseline is no row", _table("name = 'a'\nbaseline = 'b'"), ("unknown baseline row 'b'",)),
    Case(
        "a table with one row twice", _table("name = 'a'\n[[table.rows]]\nname = 'a'"), ("'a' is the name of several",)
    ),
    Case("a table with a row without a name", _table(""), ("table.rows.0", "the row has no name")),
    Case("a table file that is not there", lambda world: ["table", world.root / "sweep.toml"], ("sweep.toml",)),
    Case(
        "a table file as recipe",
        lambda world: [*_table("name = 'a'")(world)[:1], "--recipe", world.root / "sweep.toml"],
        ("holds a table and no recipe",),
    ),
    # sizes
    Case("a batch of 10^9 images", _plan("--batch-size", "1000000000"), ("training.batch_size", "65536")),
    Case("a scale of 10^6", _set("data.scale=[1.0,1e6]"), ("scale", "0.0625 to 16")),
    Case("a crop of 10^6 px", _set("data.crop=[1000000,1000000]"), ("crop", "16384 px")),
    Case("less than no memory for images", _set("data.cache_limit_gb=-1"), ("data.cache_limit_gb", "equal to 0")),
    Case("a codec that there is not", _set("depth.codec=zip"), ("depth.codec", "'blosc'", "found 'zip'")),
    Case("10^6 loaders", _plan("--workers", "1000000"), ("data.workers", "256")),
    Case("a word for loaders", _plan("--workers", "abc"), ("--workers", "'abc'", "whole number nor auto")),
    Case("10^18 steps", _plan("--iterations", "1000000000000000000"), ("training.iterations", "1000000000")),
    Case(
        "determinism asked of a network that cannot have it",
        lambda world: world.with_recipe(
            "run",
            "--schedule",
            "seg-only",
            "--deterministic",
            "--network",
            "segnet",
            "--set",
            "network.width=2",
            "--set",
            "network.encoder_weights=none",
        ),
        ("max_unpooling2d", "--deterministic"),
    ),
    Case(
        "a way to compile that there is not",
        _plan("--compile", "--set", "training.compile_mode=fast"),
        ("training.compile_mode", "reduce-overhead"),
    ),
    Case("a learning rate of 1e300", _plan("--lr", "1e300"), ("training.lr", "1000")),
    Case("10^12 scenes", _file("[data.options]\ncounts = {train = 1000000000000}"), ("count of train", "at most")),
    Case("a seed of 30 digits among --seeds", _plan("--seeds", "0,1" + "0" * 30), ("--seeds", "below 2^63")),
    Case("a seed of 64 bits", _plan("--seed", str(2**63)), ("seed: ", "64 bits")),
    Case(
        "mixed images where every image has a mask",
        _set("schedule.mix=cut"),
        ("phase 'seg' has mix 'cut'", "the data offer 0", "--labelled-fraction"),
    ),
    # two things of which one would be ignored
    Case("--epochs beside --iterations", _plan("--epochs", "3", "--set", "training.iterations=5"), ("give one of",)),
    Case("epochs beside iterations", _file(f"{OWN}[training]\nepochs = 3\niterations = 3"), ("give one of them",)),
    Case(
        "--epochs on a recipe of iterations",
        _plan("--epochs", "3"),
        ("the recipe's iterations = 1 do not count",),
        exit=0,
        check=_three_iterations,
    ),
    Case("--seed beside --seeds", _plan("--seed", "1", "--seeds", "2,3"), ("--seed 1", "--seeds", "give one")),
    Case(
        "--lr where every step has its own",
        _file(f"schedule.name = 'own'\n{STEP}lr = 0.1\n{OWN}", "--lr", "1"),
        ("training.lr", "schedule.steps"),
    ),
    Case(
        "--iterations beside a step's own epochs",
        _file(f"schedule.name = 'own'\n{STEP}epochs = 1\n{OWN}", "--iterations", "1"),
        ("training.iterations", "x of schedule.steps say their own epochs, which would win"),
    ),
    Case("a schedule's file without steps", _schedule("name = 'none'"), ("holds no schedule", "[[steps]]")),
    Case("a schedule's file that is not there", _plan("--schedule", "none.toml"), ("cannot read", "none.toml")),
    Case(
        "the best of no scores", _set_all("training.keep=best", "training.val_every=0"), ("val_every = 0 makes none",)
    ),
    Case(
        "class weights for a loss of regions",
        _set_all("loss.seg=dice", "loss.class_weights=[1.0, 1.0]"),
        ("seg = dice has no term", "leave them out, or combine"),
    ),
    Case("a sum of losses with none", _set("loss.seg={}"), ("at least one loss",)),
    Case("more parts than images", _plan("--accumulate", "9"), ("less than one a part", "--accumulate")),
    Case(
        "a run removed with nobody to ask",
        lambda _: ["runs", "rm", "unet-tu-test_resnet-seg"],
        ("nobody to ask", "--yes"),
    ),
    Case("--schedule on a table", _plan("schedules"), ("schedule.name", "the rows of table 'schedules' decide")),
    Case(
        "--encoder on a table of encoders",
        lambda world: world.with_recipe("table", "backbones", "--encoder", "vgg16"),
        ("network.encoder", "table 'backbones'"),
    ),
    Case(
        "an option of the recipe's network on a table of other networks",
        lambda world: world.with_recipe("plan", "mff", "--set", "network.encoder_depth=3"),
        ("network.encoder_depth", "table 'mff'"),
    ),
    Case(
        "--kind beside --estimator dataset",
        _plan("--estimator", "dataset", "--kind", "metric"),
        ("depth.kind", "'dataset'", "--estimator"),
    ),
    Case(
        "--compile beside --estimator dataset",
        lambda world: world.with_recipe("pseudo-depth", "--estimator", "dataset", "--compile"),
        ("--compile", "'dataset'", "--estimator"),
    ),
    Case("--margin without --tile", lambda _: ["evaluate", "any", "--margin", "32"], ("--margin 32", "no --tile")),
    Case("a momentum for Adam", _set("training.momentum=0.5"), ("training.momentum", "optimizer", "'sgd'")),
    Case(
        "a switch of the dataset in quotes",
        lambda world: world.with_recipe(
            "plan", "--dataset", "cityscapes", "--data-root", world.data, "--set", 'data.options.metric_depth="false"'
        ),
        ("cityscapes", "metric_depth", "true or false", "'false'"),
    ),
    Case("counts of scenes as a list", _file(OWN, "--set", "data.options.counts=[4, 2]"), ("counts", "a table")),
    Case(
        "10^7 scenes, for which the disk has no room",
        _file(OWN, "--set", "data.options={size=[4096, 4096], counts={train=10000000, val=1, test=1}}"),
        ("10000000 drawn scenes", "GB are free", "--workdir"),
    ),
    Case(
        "a folder without its dataset", lambda world: ["datasets", "--data-root", world.data], ("which dataset", "NAME")
    ),
    Case(
        "advice for an image of 5,000 digits",
        lambda _: ["advise", "--images", "5", "--similarity", "similar", "--input-size", "9" * 5000],
        ("--input-size", "too large", "16384"),
    ),
    Case("a folder of data for drawn scenes", _file(OWN, "--data-root", "/mine"), ("scenes", "--data-root", "folder")),
    # images to label
    Case(
        "more images to label than there are",
        lambda world: world.with_recipe("select", "--budget", "5"),
        ("5 images are asked for", "4 are without a mask"),
    ),
    Case(
        "a list of labelled images with another's",
        _given(lambda path: path.write_text("train0\nnobody\n")),
        ("given.txt", "nobody", "folder has not"),
    ),
    Case("a folder as list of labelled images", _given(Path.mkdir), ("given.txt", "it is a folder")),
    Case("no list of labelled images", _given(lambda _: None), ("--given", "given.txt", "no file with ids")),
    Case(
        "features of a teacher that is none",
        lambda world: world.with_recipe("select", "--budget", "2", "--estimator", "dataset"),
        ("depth.estimator", "'dataset'", "--estimator", "depth-map"),
    ),
    Case(
        "images to label among the images",
        lambda world: world.with_recipe("select", "--budget", "2", "--out", world.data / "images" / "train"),
        ("--out", "files that are read"),
    ),
    # names
    Case("an own schedule called like a row", _file(f"{OWN}{STEP}"), ("'depth-first'", "name of their own")),
    Case("a schedule's name with slashes", _set("schedule.name=../../etc"), ("'../../etc'", "letter or digit")),
    Case("a schedule's name of 500 letters", _set("schedule.name=" + "a" * 500), ("at most 60",)),
    Case("row_changes of no row", _set("row_changes.nope={}"), ("'nope'", "no table has")),
    Case("options of the network before labels", _without_depth, ("encoder_depth 99", "1 to 5")),
    Case("weights that no encoder has", _set("network.encoder_weights=nope"), ("has no weights 'nope'", "none")),
    Case("a network's option that is a date", _set("network.x=2020-01-01"), ("network.x", "put it in quotes")),
    Case("--workdir '' of an unset variable", lambda _: ["--workdir", "", "schedules"], ("--workdir", "empty")),
]
