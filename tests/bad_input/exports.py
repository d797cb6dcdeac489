"""Exports whose files are not those that were proven."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from pipeline.commands.export import export_run
from pipeline.session import Session
from stages.export.proof_file import find_damaged, hash_files, read_proof
from tests.bad_input.world import Answer, Case, World

Change = Callable[[World], object]
Prepare = Callable[[World], Sequence[str | Path]]
AGAIN = "export the run again"


def _evaluate(change: Change, *words: str) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        change(world)
        return ["evaluate", world.export, *words]

    return prepare


def _predict(change: Change) -> Prepare:
    def prepare(world: World) -> Sequence[str | Path]:
        change(world)
        return ["predict", world.export, world.user / "photo.png", "--out", world.root / "predicted"]

    return prepare


def _open(*words: str, name: str = "model.onnx", change: Change = lambda _: None) -> Prepare:
    """Return an evaluation of one file of the export, copied to a place of its own."""

    def prepare(world: World) -> Sequence[str | Path]:
        shutil.copy(world.export / name, world.root / name)
        change(world)
        return ["evaluate", world.root / name, *words]

    return prepare


def _export_without_data(world: World) -> Sequence[str | Path]:
    data = {"root": str(world.root / "nowhere")}
    world.edit_json(world.run_folder() / "run.json", lambda content: content["config"]["data"].update(data))
    return ["export", "--out", world.root / "out", "--formats", "safetensors", "--no-benchmark"]


def _write_foreign_onnx(world: World) -> None:
    """Write somebody's graph, which says nothing of itself."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 64, 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (world.root / "model.onnx").write_bytes(model.SerializeToString())


def _write_foreign_xml(world: World, *beside: str) -> Path:
    for name in ("foreign.xml", *beside):
        (world.root / name).write_text("<html></html>")
    return world.root / "foreign.xml"


def _export_again(change: Change) -> Prepare:
    """Return an export of weights alone to where the same one was written before."""

    def prepare(world: World) -> Sequence[str | Path]:
        shutil.rmtree(world.export)
        export_run(
            Session.start(str(world.work), quiet=True), None, world.export, formats=("safetensors",), benchmark=False
        )
        change(world)
        return ["export", "--out", world.export, "--formats", "safetensors", "--no-benchmark"]

    return prepare


def _edit(name: str, **changes: Any) -> Change:
    """Return what changes a file and its hash in proof.json, as if it had been exported so."""

    def edit(world: World) -> None:
        world.edit_json(world.export / name, lambda content: content.update(changes))
        files = {name: content for name, content in hash_files(world.export).items() if name != "proof.json"}
        world.edit_json(world.export / "proof.json", lambda proof: proof.update(files=files))

    return edit


def _edit_proof(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda world: world.edit_json(world.export / "proof.json", change)


def _double_weights(world: World) -> None:
    path = world.export / "model.safetensors"
    save_file({name: value * 2 for name, value in load_file(path).items()}, path, {"format": "pt"})


def _write_into_card(world: World) -> None:
    with (world.export / "README.md").open("a") as file:
        file.write("my remarks\n")


def _swap_record(world: World) -> None:
    shutil.copy(world.run_folder("seg-only") / "run.json", world.export / "origin.json")


def _is_sound(world: World, answer: Answer) -> None:
    files = read_proof(world.export).files
    assert files is not None and not find_damaged(world.export, files)
    assert not answer.json["reused"]


def _is_absent(world: World, _answer: Answer) -> None:
    assert not (world.root / "out").exists()


def _is_kept(world: World, answer: Answer) -> None:
    assert answer.json["reused"] and (world.export / "README.md").read_text().endswith("my remarks\n")


_NOT_PROVEN = ("missing or not the one that proof.json is of", AGAIN)
_EMBEDDED = ("--format", "onnx-embedded")
_OLD = _edit("preprocess.json", format=1, size_rule={"input_size": [64, 64]})
_BILLION = {"name": "unet", "num_classes": 10**9, "options": {}}
CASES = [
    Case("weights of an export altered; evaluate", _evaluate(_double_weights), ("model.safetensors", *_NOT_PROVEN)),
    Case(
        "one bit of an export's weights flipped; predict",
        _predict(lambda world: world.flip_byte(world.export / "model.safetensors")),
        ("model.safetensors", *_NOT_PROVEN),
    ),
    Case(
        "weights of an export cut off; evaluate",
        _evaluate(lambda world: world.truncate(world.export / "model.safetensors")),
        ("model.safetensors", *_NOT_PROVEN),
    ),
    Case(
        "weights of an export removed; predict",
        _predict(lambda world: (world.export / "model.safetensors").unlink()),
        ("model.safetensors", *_NOT_PROVEN),
    ),
    Case(
        "preprocess.json of another export; predict",
        _predict(
            lambda world: world.edit_json(world.export / "preprocess.json", lambda found: found.update(mean=[0.5] * 3))
        ),
        ("preprocess.json", *_NOT_PROVEN),
    ),
    Case("the record of another run in an export; evaluate", _evaluate(_swap_record), ("origin.json", *_NOT_PROVEN)),
    Case(
        "an export without its proof; evaluate",
        _evaluate(lambda world: (world.export / "proof.json").unlink()),
        ("cannot read", "proof.json", AGAIN),
    ),
    Case(
        "an export's proof without the files it is of; predict",
        _predict(_edit_proof(lambda proof: proof.pop("files"))),
        ("proof.json is damaged", "files is missing", AGAIN),
    ),
    Case(
        "an export's proof of before it named its files; predict",
        _predict(_edit_proof(lambda proof: [proof.update(format=1), proof.pop("files")])),
        ("the files in", "are believed unchecked", AGAIN),
        exit=0,
    ),
    Case(
        "an export's proof of a newer version; evaluate",
        _evaluate(_edit_proof(lambda proof: proof.update(format=9))),
        ("proof.json has format 9", "update this one"),
    ),
    Case(
        "preprocess.json that divides by nothing; predict",
        _predict(_edit("preprocess.json", std=[0.0, 0.2, 0.2])),
        ("std.0: Input should be greater than", AGAIN),
    ),
    Case(
        "preprocess.json with words for numbers; predict",
        _predict(_edit("preprocess.json", mean="grey")),
        ("mean: Input should be a valid array", AGAIN),
    ),
    Case(
        "preprocess.json with two of three means; evaluate",
        _evaluate(_edit("preprocess.json", mean=[0.5, 0.5])),
        ("preprocess.json is damaged", AGAIN),
    ),
    Case(
        "preprocess.json with NaN; evaluate",
        _evaluate(_edit("preprocess.json", mean=[float("nan")] * 3)),
        ("NaN is no number", AGAIN),
    ),
    Case(
        "preprocess.json with classes in another order; evaluate",
        _evaluate(_edit("preprocess.json", class_names=["thing", "ground"])),
        ("name other classes", AGAIN),
    ),
    Case(
        "config.json of an export without its network; evaluate",
        _evaluate(_edit("config.json", _pipeline_network=3)),
        ("config.json is damaged", "_pipeline_network"),
    ),
    Case(
        "config.json of an export with a billion classes; evaluate",
        _evaluate(_edit("config.json", _pipeline_network=_BILLION)),
        ("num_classes: Input should be less than", "found 1000000000"),
    ),
    Case(
        "an export whose weights were removed; export again",
        _export_again(lambda world: (world.export / "model.safetensors").unlink()),
        ("model.safetensors in", "is written anew"),
        exit=0,
        check=_is_sound,
    ),
    Case(
        "an export whose preprocess.json was altered; export again",
        _export_again(lambda world: world.truncate(world.export / "preprocess.json")),
        ("preprocess.json in", "is written anew"),
        exit=0,
        check=_is_sound,
    ),
    Case(
        "an export into whose card somebody wrote; export again",
        _export_again(_write_into_card),
        (),
        exit=0,
        check=_is_kept,
    ),
    Case(
        "an export into whose card somebody wrote, and whose weights were altered; export again",
        _export_again(lambda world: [_write_into_card(world), _double_weights(world)]),
        ("would replace your README.md", "--overwrite"),
    ),
    Case(
        "an export whose proof is cut off; export again",
        _export_again(lambda world: world.truncate(world.export / "proof.json")),
        ("proof.json is damaged", "--overwrite"),
    ),
    Case(
        "an export's file that answers labels; predict",
        lambda world: ["predict", world.export, world.user / "photo.png", "--out", world.root / "p", *_EMBEDDED],
        ("format onnx-embedded does all of predicting itself", "here name another format"),
    ),
    Case(
        "a page in the export's own folder",
        lambda world: ["export", "--out", world.export, "--web", world.export],
        ("is the export's own folder", "name another one"),
    ),
    Case(
        "a page of a runtime that is not there",
        lambda world: ["export", "--out", world.root / "o", "--web", world.root / "page", "--web-runtime", world.user],
        ("holds no npm package onnxruntime-web", "npm pack onnxruntime-web@"),
    ),
    Case(
        "an export for images of 100,000 px a side",
        lambda world: ["export", "--out", world.root / "large", "--input-size", "100000", "100000"],
        ("100000x100000", "use 16384x16384"),
    ),
    Case(
        "an export for images of 50 px a side",
        lambda world: ["export", "--out", world.root / "small", "--input-size", "50", "70"],
        ("50x70", "use 64x70"),
    ),
    Case(
        "an export's folder, misspelt",
        lambda world: ["predict", f"{world.export}t", world.user / "photo.png", "--out", world.root / "seen"],
        ("exportt' is no run (did you mean '", "/export'"),
    ),
    Case(
        "a benchmark of a folder that is no export",
        lambda world: ["benchmark", world.user],
        ("cannot read", "proof.json", AGAIN),
    ),
    Case(
        "a benchmark of an export whose ONNX file was altered",
        lambda world: [world.flip_byte(world.export / "model.onnx"), "benchmark", world.export][1:],
        ("model.onnx", *_NOT_PROVEN),
    ),
    Case(
        "a benchmark at another size than the one that an export takes",
        lambda world: [
            _edit("preprocess.json", size_rule={"kind": "fixed", "input_size": [64, 64]})(world),
            *("benchmark", world.export, "--input-size", "96", "96"),
        ][1:],
        ("takes images resized to 64x64 px, whatever they are; drop --input-size",),
    ),
    Case(
        "a repository of the Hub that nobody can have",
        lambda world: ["export", "--out", world.root / "o", "--push-to-hub", "model"],
        ("'model' is no model repository; write it as OWNER/NAME",),
    ),
    Case(
        "--dry-run of an export that is sent nowhere",
        lambda world: ["export", "--out", world.root / "o", "--dry-run"],
        ("--dry-run shows what --push-to-hub OWNER/NAME would send; add that",),
    ),
    Case(
        "an export for images of any size and of one",
        lambda world: ["export", "--out", world.root / "both", "--dynamic", "--fixed"],
        ("--dynamic keeps every image's own size, --fixed and --input-size give it up",),
    ),
    Case(
        "an export of a run whose images are gone",
        _export_without_data,
        ("compared on drawn noise alone, without real images", "nowhere"),
        exit=0,
    ),
    Case(
        "an export whose ONNX file was altered; evaluate it",
        _evaluate(lambda world: world.flip_byte(world.export / "model.onnx"), "--format", "onnx"),
        ("model.onnx", *_NOT_PROVEN),
    ),
    Case(
        "a format that an export does not hold; evaluate it",
        _evaluate(lambda _: None, "--format", "pt2"),
        ("holds no pt2; it holds safetensors, onnx", "--formats safetensors,onnx,pt2"),
    ),
    Case(
        "a format of a run",
        lambda world: ["evaluate", world.run_folder(), "--format", "onnx"],
        ("a run has no formats", "drop --format onnx"),
    ),
    Case(
        "another size of images than an export's",
        _evaluate(lambda _: None, "--size", "recipe"),
        ("takes images at their own size, wherever it runs, but --size recipe has images resized to 64x64 px",),
    ),
    Case(
        "preprocess.json with a size rule that says no size; evaluate",
        _evaluate(_edit("preprocess.json", size_rule={"kind": "fixed"})),
        ("preprocess.json is damaged", "size_rule {'kind': 'fixed'} is neither", AGAIN),
    ),
    Case("an export of before there was one size rule; evaluate", _evaluate(_OLD), (), exit=0),
    Case(
        "an export of before there was one size rule; evaluate its ONNX file",
        _evaluate(_OLD, "--format", "onnx"),
        ("is of an older version, whose onnx obeys no one size rule", AGAIN),
    ),
    Case(
        "an ONNX file outside of its export; evaluate without a recipe",
        _open(),
        ("lies alone and does not say which data it is scored on; give --recipe",),
    ),
    Case(
        "a recipe beside an export, which comes with its own",
        lambda world: world.with_recipe("evaluate", world.export),
        ("comes with the recipe of its run; drop --recipe",),
    ),
    Case(
        "an ONNX file outside of its export, cut off",
        _open(change=lambda world: world.truncate(world.root / "model.onnx")),
        ("onnxruntime cannot open", "model.onnx", AGAIN),
    ),
    Case(
        "somebody else's ONNX file",
        _open(change=_write_foreign_onnx),
        ("does not say what its classes are and how images enter",),
    ),
    Case(
        "somebody else's file for OpenVINO, without the weights beside it",
        lambda world: world.with_recipe("evaluate", _write_foreign_xml(world)),
        ("foreign.xml comes with its weights, foreign.bin, which is missing",),
    ),
    Case(
        "somebody else's file that OpenVINO cannot read",
        lambda world: world.with_recipe("evaluate", _write_foreign_xml(world, "foreign.bin")),
        ("OpenVINO cannot open", "foreign.xml", AGAIN),
    ),
    Case(
        "numbers of 8 bits that may cost more than all of the score",
        lambda world: ["export", "--out", world.root / "o", "--formats", "onnx-int8", "--max-drop", "1.5"],
        ("--max-drop", "1.5 is not in the range 0<=x<=1"),
    ),
    Case(
        "numbers of 8 bits without an image to calibrate them on",
        lambda world: [*_export_without_data(world), "--formats", "onnx-int8"],
        ("onnx-int8", "calibrated on training images", "leave 'onnx-int8' out"),
        check=_is_absent,
    ),
    Case(
        "a file that is no model of any format; predict",
        lambda world: [
            "predict",
            world.user / "thesis.tex",
            world.user / "photo.png",
            "--out",
            world.root / "predicted",
        ],
        ("thesis.tex is no file of an export", ".onnx"),
    ),
]
