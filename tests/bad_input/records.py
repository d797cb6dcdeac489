"""Records and weights of our own: cut off, altered, exchanged, of another version, or made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data_cache.content import ContentHashes
from tests.bad_input.world import Answer, Case, World

Prepare = Callable[[World], Sequence[str | Path]]
Tensors = dict[str, torch.Tensor]
REMEDY = "remove the folder"
SEG = "seg-only"

_ONE_FORMAT = ("--formats", "safetensors", "--no-benchmark")


def _command(world: World, name: str, schedule: str = SEG) -> Sequence[str | Path]:
    return {
        "run": world.with_recipe("run", "--schedule", "seg-only") if schedule == SEG else world.with_recipe("run"),
        "evaluate": ["evaluate", world.run_folder(schedule)],
        "predict": ["predict", world.run_folder(schedule), world.user / "photo.png", "--out", world.root / "predicted"],
        "export": ["export", world.run_folder(schedule).name, "--out", world.root / "new", *_ONE_FORMAT],
        "export newest": ["export", "--out", world.root / "new", *_ONE_FORMAT],
        "compare": ["compare"],
        "compare it": ["compare", world.run_folder(schedule).name],
        "report": ["report"],
    }[name]


def _damage(command: str, change: Callable[[World], object], schedule: str = SEG) -> Prepare:
    """Return the words of a command on a run; what is changed is found only after they were."""

    def prepare(world: World) -> Sequence[str | Path]:
        words = _command(world, command, schedule)
        change(world)
        return words

    return prepare


def _weights(world: World) -> Path:
    return world.node_folders(SEG)[-1] / "weights.safetensors"


def _node(world: World) -> Path:
    return world.node_folders(SEG)[-1] / "node.json"


def _run(world: World) -> Path:
    return world.run_folder(SEG) / "run.json"


def _edit_weights(change: Callable[[Tensors], object], *, sign: bool = False) -> Callable[[World], object]:
    """Return what rewrites the tensors; signed, the node's record is made to agree, as if they had been trained so."""

    def edit(world: World) -> None:
        tensors = load_file(_weights(world))
        change(tensors)
        save_file(tensors, _weights(world))
        if sign:
            content = ContentHashes().hash((_weights(world),))
            world.edit_json(_node(world), lambda record: record.update(weights=content))

    return edit


def _spoil(tensors: Tensors) -> None:
    tensors["seg_head.0.weight"].fill_(float("nan"))


def _halve(tensors: Tensors) -> None:
    tensors["seg_head.0.weight"] = tensors["seg_head.0.weight"].half()


def _swap_weights(world: World) -> None:
    shutil.copy(world.node_folders()[-1] / "weights.safetensors", _weights(world))


def _swap_nodes(world: World) -> None:
    mine, other = world.node_folders(SEG)[-1], world.node_folders()[-1]
    shutil.rmtree(mine)
    shutil.copytree(other, mine)


def _alter_parent(world: World) -> None:
    first, last = world.node_folders()
    shutil.rmtree(last)
    world.flip_byte(first / "weights.safetensors")


def _edit(find: Callable[[World], Path], **changes: Any) -> Callable[[World], object]:
    return lambda world: world.edit_json(find(world), lambda record: record.update(changes))


def _write(find: Callable[[World], Path], content: bytes) -> Callable[[World], object]:
    return lambda world: find(world).write_bytes(content)


def _link_node_out(world: World) -> None:
    node = world.node_folders(SEG)[-1]
    shutil.move(node, world.user / "elsewhere")
    node.symlink_to(world.user / "elsewhere")


def _left_out(world: World, answer: Answer) -> None:
    found = answer.json
    assert [row["name"] for row in found["rows"]] == ["depth-first-direct+copy"], "the good run is shown"
    assert any("is left out" in note for note in found["notes"])


def _exported_other(world: World, answer: Answer) -> None:
    assert answer.json["run"] == world.run_folder(SEG).name


def _told_once(_: World, answer: Answer) -> None:
    assert answer.stderr.count("believed unchecked") == 1


def _keeps_results(world: World, answer: Answer) -> None:
    (phase,) = answer.json["phases"]
    assert phase["reused"] and json.loads(_run(world).read_text())["metrics"] == answer.json["metrics"]


def _spoil_log(world: World) -> None:
    (_node(world).parent / "metrics.jsonl").write_text('{"phase": "seg", "step": 1, "raw": {"seg": NaN}}\n')
    _run(world).unlink()


def _checkpoint(change: Callable[[Path], object]) -> Prepare:
    """Return a run whose first phase was stopped at its beginning, and whose training state was then changed."""

    def prepare(world: World) -> Sequence[str | Path]:
        from stages.training.checkpoint import write_checkpoint

        node = world.node_folders(SEG)[-1]
        tensors = {f"network/{name}": value for name, value in load_file(_weights(world)).items()}
        for file in (_weights(world), node / "node.json"):
            file.unlink()
        write_checkpoint(node / "checkpoint", 0, tensors, node.name)
        change(node / "checkpoint" / "step-00000000")
        return _command(world, "run")

    return prepare


def _facts(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(facts | changes))

    return change


def _resave(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    """Return what changes a training state's tensors and signs them."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "state.safetensors")
        change(tensors)
        save_file(tensors, folder / "state.safetensors")
        _facts(content=ContentHashes().hash((folder / "state.safetensors",)))(folder)

    return edit


def _beyond(folder: Path) -> None:
    folder.rename(folder.with_name("step-00000009"))
    _facts(step=9)(folder.with_name("step-00000009"))


_DAMAGED_RUN = ("run.json", "remove it and repeat its run")
CASES = [
    Case(
        "weights of a finished phase cut off; run",
        _damage("run", lambda world: world.truncate(_weights(world))),
        ("weights.safetensors is not as it was written", REMEDY),
    ),
    Case(
        "one bit of the weights flipped, size and date as before; run",
        _damage("run", lambda world: world.flip_byte(_weights(world))),
        ("weights.safetensors is not as it was written", REMEDY),
    ),
    Case(
        "one bit of the weights flipped; evaluate",
        _damage("evaluate", lambda world: world.flip_byte(_weights(world))),
        ("weights.safetensors is not as it was written", REMEDY),
    ),
    Case(
        "one bit of the weights flipped; predict",
        _damage("predict", lambda world: world.flip_byte(_weights(world))),
        ("weights.safetensors is not as it was written", REMEDY),
    ),
    Case(
        "weights exchanged for those of another phase; export",
        _damage("export", _swap_weights),
        ("weights.safetensors is not as it was written", REMEDY),
    ),
    Case(
        "the weights that a phase would train on from altered; run",
        _damage("run", _alter_parent, "depth-first-direct+copy"),
        ("weights.safetensors is not as it was written", REMEDY),
    ),
    Case(
        "weights removed; evaluate",
        _damage("evaluate", lambda world: _weights(world).unlink()),
        ("there is no such file", REMEDY),
    ),
    Case(
        "weights that are not finite, although their record says so; evaluate",
        _damage("evaluate", _edit_weights(_spoil, sign=True)),
        ("are not finite (in seg_head.0.weight", REMEDY),
    ),
    Case(
        "weights of another type of numbers; evaluate",
        _damage("evaluate", _edit_weights(_halve, sign=True)),
        ("seg_head.0.weight is (2, 8, 3, 3) float16 in the file and (2, 8, 3, 3) float32 in the network", REMEDY),
    ),
    Case(
        "weights without one tensor; evaluate",
        _damage("evaluate", _edit_weights(lambda tensors: tensors.pop("seg_head.0.bias"), sign=True)),
        ("seg_head.0.bias is missing in the file", REMEDY),
    ),
    Case(
        "weights exchanged together with their record; export",
        _damage("export", _edit_weights(lambda tensors: tensors["seg_head.0.bias"].add_(1), sign=True)),
        ("has the scores of other weights", "repeat the run"),
    ),
    Case(
        "the folder of one phase exchanged for that of another; run",
        _damage("run", _swap_nodes),
        ("node.json is of another training", REMEDY),
    ),
    Case(
        "the folder of one phase exchanged for that of another; evaluate",
        _damage("evaluate", _swap_nodes),
        ("has the scores of other weights", "repeat the run"),
    ),
    Case(
        "node.json cut off; run",
        _damage("run", lambda world: world.truncate(_node(world))),
        ("node.json is damaged", REMEDY),
    ),
    Case(
        "node.json with words for numbers; run",
        _damage("run", _edit(_node, seconds="long", numerics=None)),
        ("seconds: Input should be a valid number, found 'long'", "numerics", REMEDY),
    ),
    Case(
        "node.json of a newer version; run",
        _damage("run", _edit(_node, format=99)),
        ("node.json has format 99", "update this one"),
    ),
    Case(
        "node.json without the hash of its weights; evaluate",
        _damage("evaluate", _edit(_node, weights=None)),
        ("node.json is damaged", "weights is missing", REMEDY),
    ),
    *(
        Case(
            f"node.json of before its weights had a hash; {command}",
            _damage(command, _edit(_node, format=1, weights=None)),
            ("weights.safetensors is believed unchecked", REMEDY),
            exit=0,
            check=_told_once,
        )
        for command in ("run", "evaluate")
    ),
    Case(
        "a finished phase without its log; run",
        _damage("run", lambda world: [(_node(world).parent / "metrics.jsonl").unlink(), _run(world).unlink()]),
        ("the losses of phase 'seg' are left out", "metrics.jsonl"),
        exit=0,
        check=_keeps_results,
    ),
    Case(
        "a finished phase with NaN in its log; run",
        _damage("run", _spoil_log),
        ("line 1 of", "NaN is no number", "left out"),
        exit=0,
        check=_keeps_results,
    ),
    Case(
        "what is remembered of a network cut off; run",
        _damage("run", lambda world: [world.truncate(file) for file in (world.work / "networks").iterdir()]),
        ("networks", "is damaged", "remove it and repeat the command"),
    ),
    Case(
        "run.json cut off, among others; compare",
        _damage("compare", lambda world: world.truncate(_run(world))),
        ("is left out", *_DAMAGED_RUN),
        exit=0,
        check=_left_out,
    ),
    Case(
        "run.json cut off, and asked for by name; compare",
        _damage("compare it", lambda world: world.truncate(_run(world))),
        ("is damaged", *_DAMAGED_RUN),
    ),
    Case(
        "images.npz cut off; report",
        _damage("report", lambda world: world.truncate(world.run_folder(SEG) / "images.npz")),
        ("images.npz is damaged", "remove it and repeat the command"),
    ),
    Case(
        "run.json that is not UTF-8, among others; report",
        _damage("report", _write(_run, b'{"name": "\xff"}')),
        ("is left out", "can't decode byte 0xff"),
        exit=0,
        check=_left_out,
    ),
    Case(
        "run.json nested 100,000 deep, among others; compare",
        _damage("compare", _write(_run, b'{"name": ' + b"[" * 100_000)),
        ("is left out", "nested too deeply"),
        exit=0,
        check=_left_out,
    ),
    Case(
        "the newest run's run.json is empty; export of the newest",
        _damage("export newest", lambda world: (world.run_folder() / "run.json").write_text("")),
        ("is left out", "is damaged"),
        exit=0,
        check=_exported_other,
    ),
    Case(
        "run.json with a score of 7; compare",
        _damage("compare it", _edit(_run, metrics={"miou_macro": 7.0})),
        ("miou_macro is 7.0, no share between 0 and 1", *_DAMAGED_RUN),
    ),
    Case(
        "run.json with a score in words; report",
        _damage("report", _edit(_run, metrics={"miou_macro": "high"})),
        ("is left out", "metrics.miou_macro"),
        exit=0,
        check=_left_out,
    ),
    Case(
        "run.json whose phase is ../../user; evaluate",
        _damage("evaluate", _edit(_run, nodes=["../../user"])),
        ("nodes.0", "found '../../user'", *_DAMAGED_RUN),
    ),
    Case(
        "run.json whose phase is an absolute path; predict",
        _damage("predict", _edit(_run, nodes=["/etc"])),
        ("nodes.0", "found '/etc'", *_DAMAGED_RUN),
    ),
    Case(
        "run.json whose phase is a name with NUL; export",
        _damage("export", _edit(_run, nodes=["a\0b"])),
        ("nodes.0", *_DAMAGED_RUN),
    ),
    Case(
        "run.json without phases; evaluate",
        _damage("evaluate", _edit(_run, nodes=[])),
        ("nodes", *_DAMAGED_RUN),
    ),
    Case(
        "a phase's folder is a link out of the work directory; evaluate",
        _damage("evaluate", _link_node_out),
        ("leads elsewhere", REMEDY),
    ),
    Case(
        "run.json with two colours for three classes; predict",
        _damage("predict", _edit(_run, classes=["ground", "thing", "more"])),
        ("2 colours for 3 classes", *_DAMAGED_RUN),
    ),
    Case(
        "run.json of images a billion pixels wide; export",
        _damage("export", _edit(_run, image_size=[64, 10**9])),
        ("image_size.1", *_DAMAGED_RUN),
    ),
    Case(
        "run.json without its recipe; evaluate",
        _damage("evaluate", _edit(_run, config={})),
        ("config", "is missing", *_DAMAGED_RUN),
    ),
    Case(
        "run.json of a newer version; run",
        _damage("run", _edit(_run, format=3)),
        ("run.json has format 3", "update this one"),
    ),
    Case(
        "run.json that is a folder; run",
        _damage("run", lambda world: [_run(world).unlink(), _run(world).mkdir()]),
        ("it is no file", *_DAMAGED_RUN),
    ),
    Case(
        "run.json exchanged for that of another run; run",
        _damage("run", lambda world: shutil.copy(world.run_folder() / "run.json", _run(world))),
        ("run.json is of another run", "remove it and repeat the command"),
    ),
    Case(
        "a training state without its facts",
        _checkpoint(lambda folder: (folder / "state.json").unlink()),
        ("step-00000000", "delete"),
    ),
    Case(
        "a training state whose facts are cut off",
        _checkpoint(lambda folder: (folder / "state.json").write_text('{"step"')),
        ("state.json is damaged", "delete"),
    ),
    Case(
        "a training state beyond the end of its phase",
        _checkpoint(_beyond),
        ("says it is of step 9", "less than the phase's 1", "delete"),
    ),
    Case(
        "a training state of a negative step",
        _checkpoint(_facts(step=-2)),
        ("step: Input should be greater than or equal to 0, found -2", "delete"),
    ),
    Case(
        "a training state of another training",
        _checkpoint(_facts(key="77")),
        ("belongs to another training", "its key is 77", "delete"),
    ),
    Case(
        "a training state with one bit flipped",
        _checkpoint(lambda folder: World(folder).flip_byte(folder / "state.safetensors")),
        ("state.safetensors is not as it was written", "delete"),
    ),
    Case(
        "a training state with a part that none has",
        _checkpoint(_resave(lambda tensors: tensors.update({"mine/x": torch.zeros(1)}))),
        ("'mine/x', which is no part of a training state", "delete"),
    ),
    Case(
        "a training state of another optimiser",
        _checkpoint(_resave(lambda tensors: tensors.update({"optimiser/seg_head.0.bias/exp_avg": torch.zeros(2)}))),
        ("the optimiser's state", "is of another training", "delete"),
    ),
    Case(
        "a training state whose log has lost its meaning",
        _checkpoint(lambda folder: (folder.parent.parent / "metrics.jsonl").write_text("{}\n")),
        ("line 1 of", "metrics.jsonl is damaged", "step is missing", "remove the file"),
    ),
]
