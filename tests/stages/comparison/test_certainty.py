"""What is known of differences: bootstrap over images, Holm's adjustment, the noise of seeds; and when nothing is."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from data_cache.errors import UserError
from data_cache.image_scores import ImageScores, write_image_scores
from data_cache.metrics import HEADLINE, IMAGES_FILE
from stages.comparison import bootstrap
from stages.comparison.bootstrap import find_interval, pool_miou, replicate_miou
from stages.comparison.formats import render_markdown, render_text
from stages.comparison.identity import Identity
from stages.comparison.record import RunRecord
from stages.comparison.statistics import adjust_holm
from stages.comparison.table import build_table

SCENES = Identity("d0", "v0", None, {"device": "cpu"}, 2, {})
IMAGES, CLASSES = 40, 4


def draw_scores(seed: int, skill: float, *, images: int = IMAGES) -> ImageScores:
    """Counts of images of unlike difficulty, of which the last class is rare."""
    split, draw = np.random.default_rng(0), np.random.default_rng((1, seed))
    truth = split.integers(50, 400, size=(images, CLASSES)) * (split.random((images, CLASSES)) < (0.9, 0.8, 0.5, 0.3))
    share = np.clip(skill - 0.3 * split.random((images, 1)) + 0.05 * draw.normal(size=truth.shape), 0, 1)
    tp = np.round(truth * share).astype(np.int64)
    fp = draw.integers(20, size=truth.shape) * (split.random(truth.shape) < 0.5)
    nothing = [np.full(images, np.nan) for _ in range(6)]
    ids = np.array([f"image {place}" for place in range(images)])
    return ImageScores(ids, np.array(list("abcd")), tp, fp, truth - tp, np.zeros_like(tp), *nothing)


def write_run(folder, name: str, seed: int, skill: float, **changes) -> RunRecord:
    scores = draw_scores(seed, skill)
    place = folder / f"{name}-{seed}"
    place.mkdir()
    write_image_scores(scores, place / IMAGES_FILE)
    metrics = {HEADLINE: float(pool_miou(scores)[0])}
    run = RunRecord(name, seed, "unet", "scenes", "demo", metrics, total_steps=9, identity=SCENES, folder=place)
    return replace(run, **changes)


@pytest.fixture
def runs(tmp_path) -> list[RunRecord]:
    skills = {"seg-only": 0.7, "joint": 0.72, "depth-first": 0.8}
    return [write_run(tmp_path, name, seed, skill) for name, skill in skills.items() for seed in range(3)]


def pool_in_plain_python(scores: ImageScores, drawn: list[int]) -> float:
    """The mean IoU of some images, class by class and image by image."""
    ious = []
    for c in range(CLASSES):
        tp, fp, fn = (sum(int(counts[place][c]) for place in drawn) for counts in (scores.tp, scores.fp, scores.fn))
        if tp + fp + fn:
            ious.append(tp / (tp + fp + fn))
    return sum(ious) / len(ious) if ious else 0.0


def test_pooling_weighted_images_equals_plain_python():
    scores, draw = draw_scores(3, 0.7), random.Random(0)
    for _ in range(20):
        drawn = draw.choices(range(IMAGES), k=draw.choice((1, 2, IMAGES)))  # of one image, classes are often absent
        weights = np.array([[drawn.count(place) for place in range(IMAGES)]], dtype=float)
        assert pool_miou(scores, weights)[0] == pytest.approx(pool_in_plain_python(scores, drawn), abs=1e-12)
    assert pool_miou(scores)[0] == pytest.approx(pool_in_plain_python(scores, list(range(IMAGES))), abs=1e-12)


def test_interval_equals_a_bootstrap_in_plain_python(runs):
    """Other draws of the same kind give the same interval, but for what 2,000 draws leave open."""
    found = next(row for row in build_table(runs).rows if row.name == "depth-first").differences[HEADLINE]
    draw, differences = random.Random(5), []
    pairs = [(draw_scores(seed, 0.8), draw_scores(seed, 0.7)) for seed in range(3)]
    for _ in range(400):
        drawn = draw.choices(range(IMAGES), k=IMAGES)  # the same for both rows and all seeds
        differences.append(
            sum(pool_in_plain_python(own, drawn) - pool_in_plain_python(other, drawn) for own, other in pairs) / 3
        )
    differences.sort()
    low, high = found.images
    assert low == pytest.approx(differences[10], abs=0.15 * (high - low))
    assert high == pytest.approx(differences[389], abs=0.15 * (high - low))
    assert low < found.mean < high


def test_replicates_are_the_same_images_for_every_run():
    weights = bootstrap._draw_weights(IMAGES, 0, 30)
    for seed, skill in ((0, 0.7), (1, 0.8)):
        scores = draw_scores(seed, skill)
        drawn = [[place for place, times in enumerate(row) for _ in range(int(times))] for row in weights]
        assert replicate_miou(scores, 30) == pytest.approx([pool_in_plain_python(scores, each) for each in drawn])


def test_pairing_takes_out_how_hard_the_images_are(runs):
    own, other = replicate_miou(draw_scores(0, 0.8)), replicate_miou(draw_scores(0, 0.7))
    paired, unpaired = find_interval([own - other]), find_interval([own - np.random.default_rng(0).permutation(other)])
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Many splits of one kind of image: about 95 in 100 intervals hold the score of endlessly many."""
    truth, hits = float(pool_miou(draw_many(40_000, 0))[0]), 0
    for seed in range(1, 101):
        low, high = find_interval([replicate_miou(draw_many(60, seed), 400)])
        hits += low <= truth <= high
    assert 88 <= hits <= 99


def draw_many(images: int, seed: int) -> ImageScores:
    """Images that are all drawn alike, independently."""
    draw = np.random.default_rng((7, seed))
    truth = draw.integers(50, 400, size=(images, 2))
    tp = np.round(truth * draw.uniform(0.3, 0.9, size=truth.shape)).astype(np.int64)
    few = draw_scores(0, 0.5, images=1)
    return few._replace(image_ids=np.zeros(images, "U1"), tp=tp, fp=truth - tp, fn=(truth - tp)[:, ::-1])


def test_draws_in_parts_are_as_many_and_of_the_whole_split(monkeypatch):
    monkeypatch.setattr(bootstrap, "_WEIGHTS_AT_ONCE", 7 * IMAGES)
    weights = bootstrap._draw_weights(IMAGES, 14, 7)
    assert weights.shape == (7, IMAGES) and (weights.sum(axis=1) == IMAGES).all()
    assert replicate_miou(draw_scores(0, 0.7), 31).shape == (31,)


def test_holm_adjusts_over_the_rows_of_a_table(runs):
    rows = {row.name: row for row in build_table(runs).rows}
    found = {name: row.differences[HEADLINE] for name, row in rows.items() if row.differences}
    adjusted = adjust_holm([found["joint"].p, found["depth-first"].p])
    assert [found["joint"].holm, found["depth-first"].holm] == adjusted
    assert rows["seg-only"].base is None and rows["joint"].base is rows["seg-only"]


def test_everything_is_shown_by_its_name(runs):
    table = build_table(runs)
    notes = table.notes
    assert notes[0].startswith("noise of seeds: miou_macro of one row moves by 0.0")
    assert notes[1].startswith(f"with 3 seeds a difference below {table.noise.detectable:.3f} cannot be seen")
    text, markdown = render_text(table), render_markdown(table)
    assert re.search(r"joint +\+0\.\d+ ±0\.\d+  p .+  Holm p .+  over images [+-]0\.\d+ to \+0\.\d+", text)
    assert "| p | Holm p | over images |" in markdown.replace("---", "").replace(":", "")
    facts = table.to_json()
    assert facts["noise"] == table.noise._asdict()
    shown = next(row for row in facts["rows"] if row["name"] == "joint")["difference"][HEADLINE]
    assert set(shown) == {"mean", "half_width", "seeds", "p", "holm", "images"} and set(shown["images"]) == {
        "low",
        "high",
    }


def test_one_seed_never_gives_an_interval(runs):
    table = build_table([run for run in runs if run.seed == 0])
    for row in table.rows:
        for found in row.differences.values():
            assert (found.half_width, found.p, found.holm, found.images) == (None,) * 4
    assert table.noise is None
    assert any(note.startswith("one seed only (every row): no interval can be given") for note in table.notes)
    assert "over images" not in render_text(table)


def break_file(run):
    (run.folder / IMAGES_FILE).write_bytes(b"PK nothing")


def put_others(run):
    write_image_scores(draw_scores(9, 0.2), run.folder / IMAGES_FILE)


def rename_images(run):
    scores = draw_scores(run.seed, 0.72)
    write_image_scores(scores._replace(image_ids=np.char.add(scores.image_ids, "!")), run.folder / IMAGES_FILE)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run.folder / IMAGES_FILE).unlink(), "joint: a run has no images.npz"),
        (rename_images, "joint: the images of images.npz are not those of seg-only"),
    ],
)
def test_a_want_of_what_images_scored_is_said(runs, spoil, said):
    spoil(next(run for run in runs if run.name == "joint" and run.seed == 1))
    rows, notes = {row.name: row for row in build_table(runs).rows}, build_table(runs).notes
    found = rows["joint"].differences[HEADLINE]
    assert found.images is None and found.holm is not None
    assert rows["depth-first"].differences[HEADLINE].images is not None, "the others keep theirs"
    (note,) = [note for note in notes if note.startswith("no interval over images for")]
    assert re.search(said, note)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (break_file, r"images.npz is damaged \(.*\); remove it and repeat"),
        (put_others, "images.npz is not of the scores in the run's record; remove it"),
    ],
)
def test_what_images_scored_is_refused_where_it_is_not_to_be_believed(runs, spoil, said):
    spoil(next(run for run in runs if run.name == "joint" and run.seed == 1))
    with pytest.raises(UserError, match=said):
        build_table(runs)


def test_noise_is_not_pooled_over_data(runs):
    """Seeds do to one data set what they do not do to another."""
    others = [replace(run, identity=replace(SCENES, split="v1")) for run in runs if run.name == "joint"]
    assert build_table(runs, baseline=None).noise and build_table([*runs, *others], baseline=None).noise is None
