"""The report: one page, nothing from outside, the same numbers as the table, and honest about what is missing."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data_cache.errors import UserError
from stages.comparison.figures import Axis, draw_losses, draw_scores
from stages.comparison.identity import Identity
from stages.comparison.losses import MAX_POINTS, read_losses
from stages.comparison.pictures import Illustrations, Picture, Strip
from stages.comparison.record import ClassRecord, PhaseRecord, RunRecord
from stages.comparison.report import write_report
from stages.comparison.table import Design, build_table

SCENES = Identity("d0", "v0", None, {"device": "cpu", "dtype": "float32"}, 1, {})
VOID_TAGS = {"meta", "img", "wbr"}


class Balance(HTMLParser):
    """Checks that every opened tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.text += data


def make_runs(folder: Path, *, seeds: int = 2) -> list[RunRecord]:
    scores = {"seg-only": 0.60, "depth-first+copy": 0.64}
    return [make_run(folder, name, seed, score + seed / 500) for name, score in scores.items() for seed in range(seeds)]


def make_run(folder: Path, name: str, seed: int, score: float) -> RunRecord:
    run_folder = folder / f"unet-{name}-s{seed}"
    run_folder.mkdir(parents=True)
    phases = (PhaseRecord("depth", 40, 2.0, True), PhaseRecord("seg", 40, 2.0, False))
    lines = [{"phase": p.name, "step": s, "raw": {p.name: 1 / s}} for p in phases for s in range(10, 41, 10)]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    classes = (ClassRecord("sky", score + 0.2, 0.9, 100), ClassRecord("ghost", None, None, 0))
    command = f"pipeline run --schedule {name} --seed {seed}"
    return RunRecord(
        name,
        seed,
        "unet",
        "scenes",
        "demo",
        {"miou_macro": score},
        phases,
        80,
        classes,
        1000,
        run_folder,
        command=command,
        identity=replace(SCENES, depth="s0" if "depth" in name else None),
        confusion=((90, 10), (0, 0)),
    )


def read(page: Path) -> tuple[str, str]:
    """Return the page's HTML and its text, having checked that its tags match."""
    html = page.read_text(encoding="utf8")
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    return html, parser.text


def test_page_is_whole_and_loads_nothing(tmp_path):
    html, _ = read(write_report(build_table(make_runs(tmp_path)), tmp_path / "sub/report.html"))
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert {f"#{place}" for place in re.findall(r'<section id="([^"]*)"', html)} == set(links)
    assert not re.search(r"https?://|<link|@import|url\(", html) and html.count("<script") == 1
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["report.html"]


def test_page_shows_what_the_table_says(tmp_path):
    runs = make_runs(tmp_path)
    table = build_table(runs, paper={"seg-only": {"miou": 0.7703, "iiou": 0.48, "acc": 0.986}})
    _, text = read(write_report(table, tmp_path / "r.html"))
    for row in table.rows:
        assert row.name in text and f"{row.metrics['miou_macro'].mean:.3f}" in text
    assert "0.7703" in text and "+0.040" in text
    assert all(note in text for note in table.notes)
    assert "pipeline run --schedule depth-first+copy --seed 1" in text
    assert "80 steps · 4 s" in text and "1 of 2" in text


def test_rows_are_looked_at_closely_beside_those_of_their_own_data(tmp_path):
    here = make_runs(tmp_path)
    elsewhere = [
        replace(run, metrics={"miou_macro": 0.9}, data_root="/b", identity=replace(SCENES, data="d1", split="v1"))
        for run in here
    ]
    _, text = read(write_report(build_table([*here, *elsewhere]), tmp_path / "r.html"))
    bars = text.partition("IoU per class")[2].partition("Every row")[0]
    assert "depth-first+copy · scenes" in bars and "/b" not in bars


def test_a_baseline_that_has_one_of_its_own_is_looked_at_once(tmp_path):
    scores = {"seg-only:1": 0.7, "seg-only:1/4": 0.6, "depth-first:1/4": 0.65}
    runs = [make_run(tmp_path, name, seed, score) for name, score in scores.items() for seed in (0, 1)]
    design = Design({"depth-first:1/4": "seg-only:1/4", "seg-only:1/4": "seg-only:1"})
    table = build_table(runs, baseline="seg-only:1", design=design)
    html, _ = read(write_report(table, tmp_path / "r.html"))
    legend = html.partition("IoU per class")[2].partition("</ul>")[0]
    assert legend.count('class="chip') == 3 and "the other" not in legend


def test_runs_that_are_nothing_but_a_score_or_less_still_make_a_page(tmp_path):
    bare = RunRecord("own", 0, "unet", "scenes", "demo", {"miou_macro": 0.5})
    assert (
        "It cannot be told: own has 0.500 mIoU, and no row is there"
        in read(write_report(build_table([bare]), tmp_path / "r.html"))[1]
    )
    page = write_report(build_table([replace(bare, metrics={})]), tmp_path / "r.html")
    assert "<svg" not in page.read_text()


def test_missing_and_empty_logs_are_said(tmp_path):
    runs = make_runs(tmp_path)
    (tmp_path / "unet-depth-first+copy-s0/metrics.jsonl").unlink()
    (tmp_path / "unet-seg-only-s0/metrics.jsonl").write_text("")
    _, text = read(write_report(build_table(runs), tmp_path / "r.html"))
    assert "There is no metrics.jsonl: depth-first+copy." in text
    assert "training.log_every is more than the steps of any phase: seg-only." in text


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="no runs to report on"):
        write_report(build_table([]), tmp_path / "r.html")


def test_losses_of_phases_follow_one_another(tmp_path):
    run = make_run(tmp_path, "a", 0, 0.5)
    found = read_losses(run.folder)
    assert [tuple(phase) for phase in found.phases] == [("depth", 0, 40), ("seg", 40, 80)]
    assert [step for step, _ in found.curves["depth"]] == [10, 20, 30, 40]
    assert [step for step, _ in found.curves["seg"]] == [50, 60, 70, 80]
    assert read_losses(tmp_path) is None


def test_gradients_are_drawn_where_they_were_logged_and_only_there(tmp_path):
    table = build_table(make_runs(tmp_path))
    assert "of the gradients" not in read(write_report(table, tmp_path / "r.html"))[1]
    log = tmp_path / "unet-depth-first+copy-s0/metrics.jsonl"
    looked = {"seg": 2.0, "depth": 0.5, "cosine": -0.25}
    lines = [{"phase": "joint", "step": step, "raw": {"seg": 0.5}, "gradients": looked} for step in (1, 2)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_losses(log.parent)
    assert found.norms == {"seg": ((1, 2.0), (2, 2.0)), "depth": ((1, 0.5), (2, 0.5))}
    assert found.cosines == {"cosine": ((1, -0.25), (2, -0.25))}
    html, text = read(write_report(table, tmp_path / "r.html"))
    assert "cosine of the gradients" in text and "norm under the depth loss" in text
    assert 'points="50,62.5 100,62.5"' in html, "-0.25 on an axis from -1 to 1"


def test_a_loss_of_nothing_is_no_point_on_a_log_scale_and_the_caption_says_so(tmp_path):
    table = build_table(make_runs(tmp_path))
    assert "A loss of 0 is not drawn" not in read(write_report(table, tmp_path / "r.html"))[1]
    log = tmp_path / "unet-depth-first+copy-s0/metrics.jsonl"
    log.write_text(json.dumps({"phase": "joint", "step": 1, "raw": {"seg": 0.5, "mixed": 0.0}}) + "\n")
    assert 'class="point s3"' not in draw_losses({"a": read_losses(log.parent)})
    assert "A loss of 0 is not drawn" in read(write_report(table, tmp_path / "r.html"))[1]


def test_a_term_absent_in_between_leaves_a_gap(tmp_path):
    lines = [
        {"phase": name, "step": 1, "raw": {term: 0.5}} for name, term in (("a", "seg"), ("b", "depth"), ("c", "seg"))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, values = zip(*read_losses(tmp_path).curves["seg"], strict=True)
    assert steps == (1, 3, 3) and [math.isnan(value) for value in values] == [False, True, False]


def test_long_logs_are_thinned_without_losing_their_mean(tmp_path):
    lines = [json.dumps({"phase": "seg", "step": step, "raw": {"seg": step / 5000}}) + "\n" for step in range(1, 5001)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    points = read_losses(tmp_path).curves["seg"]
    assert len(points) <= MAX_POINTS + 20
    assert sum(value for _, value in points) / len(points) == pytest.approx(0.5, abs=0.01)


def test_a_run_of_a_single_logged_step_shows_its_losses(tmp_path):
    run = make_run(tmp_path, "a", 0, 0.5)
    (run.folder / "metrics.jsonl").write_text(json.dumps({"phase": "seg", "step": 1, "raw": {"seg": 0.5}}) + "\n")
    assert re.search(r'<path class="point s1" d="M100 [\d.]+h0"/>', draw_losses({"a": read_losses(run.folder)}))


def test_scores_and_intervals_stay_within_what_a_share_can_be(tmp_path):
    """Of two seeds that lie far apart an interval reaches below 0."""
    runs = [replace(run, metrics={"miou_macro": 0.02 + 0.1 * run.seed}) for run in make_runs(tmp_path)]
    svg = draw_scores(build_table(runs))
    assert "95 % interval 0.000 to" in svg and not re.search(r"(left:|[ML])-", svg)
    assert min(map(float, re.findall(r">(-?[\d.]+)</span>", svg.partition("ticks")[2]))) >= 0


@pytest.mark.parametrize(("low", "high"), [(0.61, 0.67), (0, 1), (3, 1234), (-1, 1), (0.5, 0.5)])
def test_ticks_are_few_round_and_within_the_axis(low, high):
    ticks = Axis(low, high).ticks()
    assert 1 <= len(ticks) <= 6 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert all(len(f"{tick:.6g}".strip("-0.").replace(".", "")) <= 3 for tick in ticks)
    assert [Axis(low, high).place(value) for value in (low - 1, low, high + 1)][:2] == [0, 0]


def test_rows_with_shares_of_the_masks_are_a_curve_with_equal_steps_for_equal_factors(tmp_path):
    assert 'id="masks"' not in read(write_report(build_table(make_runs(tmp_path)), tmp_path / "none.html"))[0]
    runs = [
        make_run(tmp_path, f"{name}:{text}", seed, score + seed / 100)
        for name, score in {"plain": 0.5, "with-depth": 0.6}.items()
        for text in ("1", "1/4", "1/16")
        for seed in range(2)
    ]
    html, _ = read(write_report(build_table(runs, baseline="plain:1"), tmp_path / "r.html"))
    section = html.partition('<section id="masks">')[2].partition("</section>")[0]
    assert "plain: 0.505 with 1/16, 0.505 with 1/4, 0.505 with 1" in section
    at = [float(place) for place in re.findall(r'left:([\d.]+)%">1', section)]
    assert len(at) == 3 and at[0] - at[1] == pytest.approx(at[1] - at[2], abs=0.02)


def test_confusion_is_in_shares_of_the_truth_and_leaves_out_what_is_not_there(tmp_path):
    html, _ = read(write_report(build_table(make_runs(tmp_path)), tmp_path / "r.html"))
    body = html.partition('<section id="confusion">')[2].partition("</section>")[0].partition("<tbody>")[2]
    assert re.findall(r">([^<>]+)<", body) == ["sky", "90", "10"]


def test_pictures_are_in_the_page_with_words_and_without_what_is_missing(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="PNG")
    shown = Illustrations(
        (Strip('worst: "a"', (Picture("truth", stream.getvalue(), is_labels=True),)),), "Of seed 0.",
        ((("<sky>", (1, 2, 3)),),), proofs={"out": (("parameters", "2 before, 1 after"),)},
    )  # fmt: skip
    html, text = read(write_report(build_table(make_runs(tmp_path)), tmp_path / "r.html", illustrations=shown))
    assert re.search(r'<img class="labels" alt="truth" src="data:image/png;base64,[^"]+">', html)
    assert "rgb(1,2,3)" in html and "<sky>" in text and "2 before, 1 after" in text
    assert 'id="pseudo-depth"' not in html
