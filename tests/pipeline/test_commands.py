"""Every command by its contract: one JSON object on stdout, one clear message for what a person can repair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import main

Call = Callable[..., Any]
TINY = Path(__file__).parent / "tiny.toml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with labels and one run of depth-first+copy and of seg-only."""
    work = tmp_path_factory.mktemp("trained")
    for words in (
        ["pseudo-depth"],
        ["run", "--schedule", "seg-only"],
        ["run", "--schedule", "depth-first", "--copy-weights"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["--workdir", str(work), "--quiet", *words, "--recipe", str(TINY)])
        assert not ended.value.code
    return work


def test_pseudo_depth_labels_once(call: Call, tmp_path: Path) -> None:
    first = call("pseudo-depth", "--recipe", TINY).json
    assert (first["images"], first["labelled"], first["skipped"], first["failed"]) == (16, 16, 0, [])
    assert first["suspicious"] == []
    assert first["images_per_second"] > 0 and first["seconds"] > 0
    again = call("pseudo-depth", "--recipe", TINY).json
    assert (again["labelled"], again["skipped"], again["stores"]) == (0, 16, first["stores"])
    with h5py.File(Path(first["stores"][0]) / "index.h5") as index:
        assert index["depth/train-00003"].shape == (64, 64)


def test_run_reports_phases_and_metrics(call: Call, trained: Path) -> None:
    answer = call("--workdir", trained, "run", "--recipe", TINY, "--schedule", "depth-first", "--copy-weights").json
    assert answer["schedule"] == "depth-first+copy"
    assert [phase["name"] for phase in answer["phases"]] == ["depth", "seg", "joint"]
    assert all(phase["reused"] and phase["steps"] == 3 and phase["key"] for phase in answer["phases"])
    expected = {
        "miou_macro", "miou_micro", "miou_micro_imagewise", "miou_imagewise_macro", "pixel_acc", "acc_binary",
        "iiou_macro_fg", "iiou_micro_fg", "fwiou", "boundary_f1", "depth_mse", "depth_absrel", "depth_delta1",
    }  # fmt: skip
    assert set(answer["metrics"]) == expected
    assert all(0 <= answer["metrics"][name] < 10 for name in expected)


def test_a_run_folder_tells_everything(trained: Path) -> None:
    (folder,) = (trained / "runs").glob("*depth-first+copy*")
    record = json.loads((folder / "run.json").read_text())
    assert record["selection"] == "last" and record["split"] == "val"
    assert sum(map(sum, record["confusion"])) == 4 * 64 * 64, "every labelled pixel of the split is counted once"
    assert record["versions"]["torch"] and record["config"]["network"]["encoder"] == "tu-test_resnet"
    assert record["depth_store"]["estimator"] == "dataset"
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in logged] == [
        (phase, step) for phase in ("depth", "seg", "joint") for step in (1, 2, 3)
    ]
    assert sum(logged[-1]["share"].values()) == pytest.approx(1)
    assert len(list((folder / "panels").glob("*.png"))) == 1


def test_seg_only_needs_no_store(call: Call) -> None:
    answer = call("run", "--recipe", TINY, "--schedule", "seg-only", "--iterations", "1")
    assert answer.status == 0 and "depth_mse" not in answer.json["metrics"]


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "json", "latex"])
def test_compare_in_every_format(call: Call, trained: Path, form: str) -> None:
    answer = call("--workdir", trained, "compare", "--format", form, as_json=False)
    assert answer.status == 0
    assert "depth-first+copy" in answer.stdout and "seg-only" in answer.stdout
    if form == "text":  # of drawn scenes: no figures of Pascal VOC unless they are asked for, and no background
        assert "paper" not in answer.stdout and "iiou" not in answer.stdout
        assert [row["paper"] for row in call("--workdir", trained, "compare").json["rows"]] == [{}, {}]
        rows = call("--workdir", trained, "compare", "--paper").json["rows"]
        assert rows[0]["paper"]["miou"] == 0.7703 and rows[1]["paper"]["miou"] == 0.7789


def test_export_predict_and_evaluate_the_export(call: Call, trained: Path, tmp_path: Path) -> None:
    words = ("--workdir", trained, "export", "--out", tmp_path / "model", "--no-benchmark")
    exported = call(*words).json
    assert exported["run"].startswith("unet-tu-test_resnet-depth-first+copy-s0-"), "the newest run is the default"
    assert exported["proof"]["max_abs_difference"]["stripped_vs_full"] == 0
    assert exported["proof"]["parameters"]["after"] < exported["proof"]["parameters"]["before"]
    assert {Path(file).name for file in exported["files"]} >= {
        "config.json", "model.safetensors", "model.onnx", "preprocess.json", "proof.json", "README.md", "predict.py",
    }  # fmt: skip
    rows = {row["format"]: row for row in exported["proof"]["table"]}
    assert rows["onnx"]["drop"] == pytest.approx(0, abs=1e-3) and "latency_ms" not in rows["onnx"]
    assert exported["proof"]["size_rule"] == {"kind": "original", "input_size": None, "why": ""}
    assert exported["proof"]["predict_py"]["argmax_agreement"] > 0.999
    assert len(exported["proof"]["formats"]["onnx"]["images"]) > 4, "real images, as they are and in other shapes"
    again = call(*words, "--push-to-hub", "somebody/model", "--dry-run").json
    sent = again["hub"]
    assert again["reused"] and sent["sent"] is None
    assert set(sent["files"]) == {path.name for path in (tmp_path / "model").iterdir()}

    of_run = call("--workdir", trained, "evaluate", exported["run"], "--save-predictions", tmp_path / "maps").json
    of_export = call("--workdir", trained, "evaluate", tmp_path / "model", "--conventions", "fwiou,pixel_acc").json
    assert {each["name"]: each["void_ignored"] for each in of_export["conventions"]} == pytest.approx(
        {name: of_run["metrics"][name] for name in ("pixel_acc", "fwiou")}
    )
    assert of_run["examples"] == of_export["examples"] and len(of_run["examples"]["worst"]) == 3
    kept = next(trained.glob(f"runs/{exported['run']}/images.npz")).read_bytes()
    assert (tmp_path / "maps" / "images.npz").read_bytes() == kept, "the run's scores are those of its weights"
    score = rows["safetensors"]["score"]
    assert score["images"] == score["of"] == of_run["images"]
    assert score["miou_macro"] == pytest.approx(of_run["metrics"]["miou_macro"]), "a file's labels score as its logits"
    assert of_export["confusion"] == of_run["confusion"], "what is shipped scores as what was trained"
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((tmp_path / "model/model.onnx").read_bytes())
    for words in ((tmp_path / "model", "--format", "onnx"), (alone, "--recipe", TINY)):
        of_onnx = call("--workdir", trained, "evaluate", *words).json
        assert (of_onnx["format"], of_onnx["size_rule"]) == ("onnx", {"kind": "original", "input_size": None})
        assert of_onnx["metrics"] == pytest.approx(of_export["metrics"], abs=1e-3)
    assert len(list((tmp_path / "maps").glob("*.png"))) == 4
    test_split = call("--workdir", trained, "evaluate", exported["run"], "--split", "test").json
    assert test_split["split"] == "test" and test_split["confusion"] != of_run["confusion"]

    photo = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(photo)
    maps = []
    for words in ((tmp_path / "model",), (tmp_path / "model", "--format", "onnx"), (alone,)):
        out = tmp_path / f"out{len(maps)}"
        files = call("--workdir", trained, "predict", *words, photo, "--out", out).json["files"]
        maps.append(np.array(Image.open(next(file for file in files if "labels" in file))))
    assert maps[0].shape == (70, 90) and maps[0].max() < 8
    assert all((found == maps[0]).mean() > 0.999 for found in maps)

    asked = ("--probabilities", "--depth", "--tta", "flip", "--html", tmp_path / "seen.html")
    told = call("--workdir", trained, "predict", exported["run"], photo, "--out", tmp_path / "more", *asked).json
    assert told["images"] == 1 and told["images_per_second"] > 0 and told["failed"] == []
    assert {Path(file).relative_to(tmp_path).as_posix() for file in told["files"]} == {
        "more/classes.csv", "more/labels/street.png", "more/overlays/street.png", "more/probabilities/street.npz",
        "more/depth/street.png", "more/predictions.json", "seen.html",
    }  # fmt: skip
    (record,) = json.loads((tmp_path / "more" / "predictions.json").read_text())["images"]
    assert sum(record["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert record["depth"]["meaning"].startswith("inverse depth, large is near")
    page = (tmp_path / "seen.html").read_text()
    assert page.count('src="data:image/jpeg') == 2 and 'type="range"' in page and 'src="http' not in page


def test_report_is_one_file(call: Call, trained: Path, tmp_path: Path) -> None:
    told = call("--workdir", trained, "report", "--out", tmp_path / "r.html").json
    page = Path(told["report"]).read_text()
    assert "depth-first+copy" in page and told["answer"].startswith("It cannot be told")
    for picture in ("truth", "where they differ", "predicted depth (same scale)"):
        assert f'alt="{picture}" src="data:image/' in page
    assert 'id="pseudo-depth"' in page
    assert 'src="http' not in page and 'href="http' not in page


def test_plan_says_what_is_left(call: Call, trained: Path) -> None:
    plan = call("--workdir", trained, "plan", "schedules", "--recipe", TINY, "--seeds", "0").json
    assert (plan["nodes"], plan["unshared"]) == (24, 34)
    assert sum(phase["done"] for phase in plan["phases"]) == 4
    copies = [phase["copies"] for phase in plan["phases"] if phase["copies"]]
    assert copies and all(copy["tensors"] == 60 for found in copies for copy in found)
    assert call("--workdir", trained, "plan", "--recipe", TINY).json["phases"][0]["trains"] == [
        "encoder", "depth-decoder", "depth-head",
    ]  # fmt: skip


def test_cache_commands(call: Call, trained: Path, tmp_path: Path) -> None:
    info = call("--workdir", trained, "cache", "info").json
    assert info["images"] == 16 and {found["split"] for found in info["provenance"]} == {"train", "val"}
    verified = call("--workdir", trained, "cache", "verify").json
    assert verified["bad"] == verified["suspicious"] == []
    sheets = call("--workdir", trained, "cache", "preview", "--recipe", TINY, "--out", tmp_path).json["files"]
    assert all(Image.open(sheet).width > 300 for sheet in sheets) and len(sheets) == 2
    maps = call("--workdir", trained, "cache", "export", "--form", "npy", "--out", tmp_path / "maps").json
    assert maps["images"] == 16 and len(list((tmp_path / "maps").rglob("*.npy"))) == 16


def test_a_store_of_an_older_version_is_left_out_by_name(call: Call) -> None:
    train, val = map(Path, call("pseudo-depth", "--recipe", TINY).json["stores"])
    for path in train.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["schema_version"] = 1
    for command in ("info", "verify", "repair"):
        answer = call("cache", command)
        assert answer.status == 0 and answer.json["images"] == 4, command
        assert f"left out: {train}" in answer.stderr and str(val) not in answer.stderr
    assert call("cache", "verify", train).status == 2


def test_depth_upside_down_is_reported(call: Call, tmp_path: Path) -> None:
    """Distances that are declared to be inverse depth: near at the top of every image."""
    for kind in ("images", "masks", "depth"):
        (tmp_path / "own" / kind / "train").mkdir(parents=True)
    (tmp_path / "own/classes.txt").write_text("ground\nthing\n")
    for number in range(9):
        Image.new("RGB", (64, 64), (number, 120, 60)).save(tmp_path / f"own/images/train/{number}.png")
        Image.new("L", (64, 64), 1).save(tmp_path / f"own/masks/train/{number}.png")
        np.save(
            tmp_path / f"own/depth/train/{number}.npy", np.linspace(9, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        )
    words = ["--recipe", TINY, "--dataset", "folder", "--data-root", tmp_path / "own", "--estimator", "dataset"]
    words += ["--set", "data.options={depth_kind='relative'}", "--split", "train"]
    found = call("pseudo-depth", *words)
    assert found.status == 0 and [entry["image"] for entry in found.json["suspicious"]] == [""]
    assert "near is at the top" in call("cache", "verify", as_json=False).stdout


def test_a_damaged_store_is_found_repaired_and_labelled_again(call: Call) -> None:
    store = Path(call("pseudo-depth", "--recipe", TINY).json["stores"][0])
    shard = next(store.glob("shard-*.h5"))
    content = bytearray(shard.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 64)
    content[middle] = bytes(64)
    shard.write_bytes(bytes(content))
    found = call("cache", "verify", store)
    assert found.status == 2 and found.json["bad"]
    trained = call("run", "--recipe", TINY)
    assert trained.status == 2 and str(shard) in trained.json["error"] and "cache repair" in trained.json["error"]
    assert call("cache", "repair", store).json["bad"]
    again = call("pseudo-depth", "--recipe", TINY).json
    assert again["labelled"] >= 1 and again["labelled"] + again["skipped"] == 16
    assert call("cache", "verify").status == 0


@pytest.mark.parametrize("name", ["networks", "schedules", "estimators", "recipes", "datasets"])
def test_lists_are_not_empty(call: Call, name: str) -> None:
    answer = call(name)
    assert answer.status == 0 and len(answer.json[name]) >= 1
    assert call(name, as_json=False).stdout.strip()


def test_every_key_of_a_recipe_is_listed_with_what_it_decides(call: Call) -> None:
    keys = {key["key"]: key for key in call("recipes", "--keys").json["keys"]}
    assert keys["training.lr"]["flag"] == "--lr" and keys["training.lr"]["decides"] == ["optimisation"]
    assert keys["loss.seg"]["kind"] == '"focal" | "cross-entropy" | "ohem" | "dice" | "lovasz" | "tversky" or table'
    assert all(key["help"] and key["decides"] for key in keys.values())


def test_doctor_checks_this_machine(call: Call) -> None:
    assert {check["name"] for check in call("doctor").json["checks"]} >= {"python", "torch", "gpu", "work directory"}


def test_dataset_doctor(call: Call) -> None:
    assert call("datasets", "scenes", "--recipe", TINY).json["problems"] == []
    assert "unknown dataset 'senes' (did you mean 'scenes'?)" in call("datasets", "senes").json["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "no such command 'rnu' (did you mean 'run'?)"),
        (["run", "--shedule", "joint"], "No such option"),
        (["run", "--schedule", "depht-first"], "unknown schedule 'depht-first' (did you mean 'depth-first'?)"),
        (["compare", "--workdir", "here"], "--workdir; it belongs before the command"),
        (["run", "--encoder", "resnet19", "--schedule", "seg-only"], "resnet19"),
        (["run", "--dataset", "camvid"], "--data-root"),
        (["table", "schedules", "--seeds", "0,x"], "whole numbers"),
        (["compare"], "no finished run"),
        (["evaluate", "nothing"], "is no run"),
        (["cache", "info"], "no depth store"),
        (["pseudo-depth", "--estimator", "bundeled"], "unknown estimator 'bundeled' (did you mean 'bundled'?)"),
        (["pseudo-depth", "--split", "vall"], "did you mean 'val'?"),
        (["fetch"], "name what to fetch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_person_can_repair_is_one_message(call: Call, words: list[str], message: str) -> None:
    needs_recipe = words[0] in ("run", "table", "pseudo-depth")
    answer = call(*words, *(["--recipe", TINY] if needs_recipe else []))
    assert answer.status == 2
    assert message in answer.json["error"]
    assert "Traceback" not in answer.stderr


def test_a_depth_phase_without_a_store_names_the_command(call: Call) -> None:
    error = call("run", "--recipe", TINY).json["error"]
    assert "no depth store for scenes train" in error and f"pipeline pseudo-depth --recipe {TINY}" in error


def test_a_store_of_another_estimator_is_not_taken(call: Call) -> None:
    assert call("pseudo-depth", "--recipe", TINY).status == 0
    answer = call("run", "--recipe", TINY, "--estimator", "bundled")
    assert answer.status == 2 and "by bundled" in answer.json["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "fcn8s", "--set", "network.width=4", "--set", "network.depth_branch=light"], "nothing to copy"),
        (["--set", "network.encoder_weights=OTHER"], "are not the weights of encoder 'tu-test_resnet'"),
    ],
    ids=["nothing to copy", "weights of another architecture"],
)
def test_nothing_is_trained_before_all_is_known_to_work(
    call: Call, tmp_path: Path, words: list[str], message: str
) -> None:
    from safetensors.torch import save_file

    save_file({"first.weight": torch.ones(2)}, other := tmp_path / "other.safetensors")
    assert call("pseudo-depth", "--recipe", TINY).status == 0
    if "fcn8s" in words:
        words = [*words, "--set", "network.encoder_weights=none"]
    answer = call("run", "--recipe", TINY, *(word.replace("OTHER", str(other)) for word in words))
    assert answer.status == 2 and message in answer.json["error"]
    assert not list((tmp_path / "work/nodes").glob("*/weights.safetensors"))


def test_a_warning_is_one_line_without_a_place_in_the_code(call: Call) -> None:
    words = ["--network", "pspnet", "--set", "network.encoder=resnet18", "--set", "network.encoder_weights=none"]
    words += ["--set", "network.decoder_channels=8", "--schedule", "seg-only", "--iterations", "1"]
    shown = call("run", "--recipe", TINY, *words).stderr
    assert "\nnote: PSPNet's pyramid is effective" in f"\n{shown}" and "UserWarning" not in shown


def test_a_transfer_mode_shows_in_the_plan(call: Call, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from segmentation_models_pytorch.encoders import get_encoder

    save_file(get_encoder("tu-test_resnet", weights=None).state_dict(), tmp_path / "encoder.safetensors")
    words = [
        "--recipe",
        TINY,
        "--schedule",
        "seg-only",
        "--set",
        f"network.encoder_weights={tmp_path}/encoder.safetensors",
    ]
    shown = call("plan", *words, "--transfer", "fine-tune", as_json=False).stdout
    assert "encoder (rate x0.1) seg-decoder" in shown
    (phase,) = call("plan", *words, "--transfer", "feature-extractor").json["phases"]
    assert phase["trains"] == ["seg-decoder", "seg-head"] and "encoder" in phase["frozen"]
    freezing = ("--set", "network.encoder_weights=none", "--set", "training.encoder_policy=freeze")
    (phase,) = call("plan", "--recipe", TINY, "--schedule", "seg-only", "--network", "bisenet", *freezing).json[
        "phases"
    ]
    assert phase["trains"] == ["encoder (fresh modules only)", "seg-decoder", "seg-head"]
    assert phase["frozen"][0] == "encoder (pretrained modules)"


def test_help_tells_what_the_commands_take_when_nothing_is_said(call: Call) -> None:
    """Written by hand there, because help imports nothing that would know."""
    from pipeline.commands.advise import SIZES, SMALL_DATASET, TARGETS
    from pipeline.experiment.tables import TABLES
    from stages.evaluation.tiling import DEFAULT_MARGIN_PX

    def read_help(command: str) -> str:
        return " ".join(call(command, "--help", as_json=False).stdout.split())

    assert all(f"[default: ({DEFAULT_MARGIN_PX});" in read_help(command) for command in ("predict", "evaluate"))
    advice = read_help("advise")
    assert f"[default: {SMALL_DATASET}]" in advice
    assert all(name in advice for name in (*SIZES, *TARGETS))
    own_seeds = {name: table.seeds for name, table in TABLES.items() if table.seeds}
    told = read_help("table").replace("- ", "-")  # names are broken at hyphens
    assert set(own_seeds.values()) == {(0, 1, 2)} and f"{', '.join(own_seeds)}: 0,1,2" in told


@pytest.mark.parametrize(
    ("exhaust", "reason"),
    [
        (lambda: bytearray(1 << 62), "(MemoryError)"),
        (lambda: torch.empty(1 << 60), "DefaultCPUAllocator: "),
    ],
    ids=["Python", "torch"],
)
def test_running_out_of_memory_is_one_message(call: Call, monkeypatch: pytest.MonkeyPatch, exhaust, reason) -> None:
    monkeypatch.setattr("pipeline.experiment.config.recipe_names", exhaust)
    answer = call("recipes")
    assert answer.status == 2 and reason in answer.json["error"]
    assert "lower --batch-size" in answer.json["error"] and "--tile 512" in answer.json["error"]
