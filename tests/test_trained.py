"""Runs that are kept: the records in book/results are whole, and what the pages make of some is right."""

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srlib import kept, metrics, papers, profiling, runs
from srlib.data import Store, find
from srlib.errors import InputError
from srlib.models import config_class
from srlib.pretrained import BSD400, SEEN, protocols

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "book" / "results"
BASE = RESULTS / "trained" / "safmn-x4.json"
KEPT = [one for part in papers.KEPT for one in kept.read(part, RESULTS)]


# --- the records of the book -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", KEPT, ids=lambda one: one.name)
def test_a_kept_run_is_whole(one: kept.Kept) -> None:
    """It says what it is and how it is made again, every data set has its images, and both logs lie beside it."""
    config, provenance = one.record["config"], one.record["provenance"]
    assert one.record["run"].startswith(f"{one.model}-{'any' if one.scale is None else f'x{one.scale}'}-")
    assert config["fingerprint"] == provenance["fingerprint"] and provenance["commit"] and provenance["seconds"] > 0
    again = runs.origin(config, one.record["budget"])
    assert again is not None and list(again.command) == one.record["command"]
    assert one.record["budget"].split(", ")[0] == again.budget
    assert one.datasets == ("photos/held-out", "Set5", "Set14")
    for score in (*one.record["scores"], *one.record["bicubic"]):
        images = [image["psnr"] for image in score["images"]]
        assert len(images) == {"photos/held-out": 4, "Set5": 5, "Set14": 14}[score["dataset"]]
        assert score["psnr"] == pytest.approx(np.mean(images)) and score["protocol"]["name"] in metrics.PROTOCOLS
    for scale in one.scales:
        for dataset in one.datasets:
            for protocol in protocols(one.model, dataset):
                assert one.score(dataset, protocol.name, scale)["ssim"] < 1
                assert one.score(dataset, protocol.name, scale, "bicubic")["dataset"] == dataset
    steps = one.log()["step"]
    assert steps[-1] == one.record["metrics"]["steps"] or one.record["metrics"]["collapsed_at"]
    assert one.log("validation")["step"][-1] <= steps[-1] and np.isfinite(one.log("validation")["psnr"]).all()


@pytest.mark.parametrize("one", KEPT, ids=lambda one: one.name)
def test_a_kept_run_is_made_again_by_this_version(one: kept.Kept) -> None:
    """The code that decides the weights has the recorded hash: a change of it asks for the runs to be trained again."""
    if not one.record["provenance"]["python"].startswith("{}.{}.".format(*sys.version_info)):
        pytest.skip("another version of Python writes the same code differently, and so its hash")
    here = runs.contract(config_class(one.model).__module__)
    assert one.record["config"]["contract"] == here, "train it again by its command, and keep it"


def test_the_test_images_that_were_trained_on_are_known(data_root: Path) -> None:
    """Set5's woman is a photograph of BSD400 made smaller: the two agree where they overlap."""
    store, test = Store.open(find("train/BSD400", data_root)), Store.open(find("Set5", data_root))
    assert store.fingerprint == BSD400 and SEEN[BSD400] == {"Set5": ("woman",)}
    whole = store.hr(store.names.index("302003")).float().mean(0)
    woman = test.hr(test.names.index("woman")).float().mean(0)
    size = round(whole.shape[0] / 1.39), round(whole.shape[1] / 1.39)
    small = torch.nn.functional.interpolate(whole[None, None], size, mode="bilinear", antialias=True)[0, 0]
    height, width = (min(a, b) for a, b in zip(small[:, 3:].shape, woman.shape, strict=True))
    both = torch.stack([small[:height, 3 : 3 + width].flatten(), woman[:height, :width].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99


@pytest.mark.parametrize("one", kept.read("equal", RESULTS), ids=lambda one: one.name)
def test_runs_of_the_comparison_are_alike(one: kept.Kept) -> None:
    """Steps, batch, patch, losses, optimiser, schedule and images; the file is named by model and seed."""
    first = kept.read("equal", RESULTS)[0]
    assert one.path.stem == f"{one.model}-seed{one.seed}" and one.record["budget"] == "equal"
    assert one.record["config"]["fingerprint"] == first.record["config"]["fingerprint"]
    assert one.record["metrics"]["collapsed_at"] is None
    _, apart = kept.settings([first, one])
    assert set(apart) <= {"queries", "scales"}


@pytest.mark.parametrize("folder", sorted((RESULTS / "ablations").glob("*")), ids=lambda folder: folder.name)
def test_kept_ablations_are_rows_of_their_table(folder: Path) -> None:
    paper, _, number = folder.name.partition("-")
    table = kept.ablation(paper, number, RESULTS)
    assert sum(len(row.runs) for row in table.rows) == len(list(folder.glob("*.json"))) > 0
    for row in table.trained:
        for seed, one in row.runs.items():
            assert one.path.stem == f"{row.row.slug}-seed{seed}"
            assert one.scale == table.scale == row.row.scale
    every = [one for row in table.trained for one in row.runs.values()]
    assert len({tuple(one.train[name] for name in ("steps", "batch", "patch", "precision")) for one in every}) == 1
    assert len({one.record["config"]["fingerprint"] for one in every}) == 1
    assert len({tuple(row.runs) for row in table.trained}) == 1, "every row has the same seeds"


def test_times_of_a_step_are_of_all_networks() -> None:
    times = kept.step_times(RESULTS)
    if not times:
        pytest.skip("no steps were timed: srlib.profiling.record_steps does it")
    assert set(times["seconds"]) == set(profiling.COMPARED) and times["unit"] > 0 and times["device"]
    for each in times["seconds"].values():
        assert 0 < each["spread"][0] <= each["median"] <= each["spread"][1]


# --- what is made of them --------------------------------------------------------------------------------------------


def write(root: Path, part: str, name: str, **changes: Any) -> dict[str, Any]:
    """A kept run like the book's own, with its PSNR moved by ``gain`` and, image by image, ``noise``."""
    record = copy.deepcopy(json.loads(BASE.read_text()))
    train = record["config"]["train"]
    train["seed"] = changes.pop("seed", 0)
    noise = np.random.default_rng(changes.pop("draw", 0)).normal(0, changes.pop("noise", 0.0), 14)
    gain, scale = changes.pop("gain", 0.0), changes.pop("scale", 4)
    record["config"]["scale"] = scale
    for kind in ("scores", "bicubic"):
        for score in record[kind]:
            score["scale"] = scale
            for image, more in zip(score["images"], noise, strict=False):
                image["psnr"] += gain + more if kind == "scores" else 0
            score["psnr"] = float(np.mean([image["psnr"] for image in score["images"]]))
    record["metrics"]["collapsed_at"] = changes.pop("collapsed_at", None)
    record |= changes
    folder = root / part
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record))
    for log in ("log", "validation"):
        shutil.copy(BASE.with_name(f"safmn-x4.{log}.csv"), folder / f"{name}.{log}.csv")
    return record


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """Two seeds of the comparison, and half of a table: its own row, one row above it, one with one seed."""
    for seed in (0, 1):
        write(tmp_path, "equal", f"safmn-seed{seed}", seed=seed, gain=0.1 * seed)
    table = {"table": "4a", "scale": 2}
    for seed in (0, 1, 2):
        write(tmp_path, "ablations/seemore-4a", f"own-seed{seed}", seed=seed, row="SeemoRe-T (RME=1;SME=1)", **table)
        gain = {"gain": 0.4 + 0.1 * seed, "noise": 0.02, "draw": seed}
        write(tmp_path, "ablations/seemore-4a", f"base-seed{seed}", seed=seed, row="Baseline", **gain, **table)
    alone = {"row": "SeemoRe-T (RME=1;SME=0)", "collapsed_at": 50, "gain": -3.0}
    write(tmp_path, "ablations/seemore-4a", "alone-seed1", seed=1, **alone, **table)
    (tmp_path / "equal" / "steps.json").write_text('{"seconds": {}}')
    return tmp_path


def test_kept_runs_are_read_by_model_and_seed(results: Path) -> None:
    found = kept.by_seed(kept.read("equal", results))
    assert list(found) == ["safmn"] and list(found["safmn"]) == [0, 1], "what is no run is passed over"
    one = found["safmn"][1]
    assert (one.name, one.title, one.scale, one.scales) == ("equal-safmn-seed1", "SAFMN", 4, (4,))
    assert one.ending == f"{one.record['metrics']['steps']:,} steps" and one.share.startswith("1/")
    assert one.command.startswith("srlib train safmn --scale 4 ")
    assert one.score("Set5", "seemore") == one.score("Set5", "safmn"), "found by its arithmetic"
    assert one.seen("Set5") == ("woman",) and one.seen("Set14") == (), "what it was trained on says nothing"
    assert one.psnr(["Set14", "Set5"]).shape == (18,) and one.psnr().shape == (22,) == (len(one.images(one.datasets)),)
    with pytest.raises(InputError, match="no score on Set5 x3"):
        one.score("Set5", scale=3)
    with pytest.raises(InputError, match="no folder of records at .*nowhere"):
        kept.read("equal", results / "nowhere")
    twin = results / "equal" / "twin.json"
    shutil.copy(one.path, twin)
    with pytest.raises(InputError, match="of one network and seed: keep one of them"):
        kept.by_seed(kept.read("equal", results))
    twin.unlink()
    assert kept.read("nowhere", results) == () and kept.by_seed([]) == {} and kept.shared([]) == ()
    assert kept.step_times(results) == {"seconds": {}} and kept.step_times(results / "equal") == {}


def test_gaps_are_of_the_same_seeds_and_images(results: Path) -> None:
    safmn = kept.by_seed(kept.read("equal", results))["safmn"]
    assert np.allclose(kept.gaps({0: safmn[1]}, {0: safmn[0]}), np.full((1, 22), 0.1))
    assert kept.gaps(safmn, {1: safmn[1]}).shape == (1, 22) and kept.surely(np.zeros((1, 22))) is None
    assert kept.over_seeds(safmn, "Set5").range == pytest.approx(0.1)
    with pytest.raises(InputError, match="share no seed"):
        kept.gaps({0: safmn[0]}, {1: safmn[1]})
    short = copy.deepcopy(dict(safmn[0].record))
    short["scores"][-1]["images"].pop()
    with pytest.raises(InputError, match="not scored on the same images"):
        kept.gaps({1: kept.Kept("other", safmn[0].path, short)}, {1: safmn[1]})
    for part, name, value in (("train", "steps", 7), ("train", "batch", 1), ("config", "fingerprint", "0")):
        longer = copy.deepcopy(dict(safmn[1].record))
        (longer["config"]["train"] if part == "train" else longer["config"])[name] = value
        with pytest.raises(InputError, match="differ in steps, batch, patch or training images"):
            kept.gaps({1: kept.Kept("other", safmn[1].path, longer)}, {1: safmn[1]})


def test_the_gain_over_bicubic_is_that_of_the_last_score(results: Path) -> None:
    """The curve ends where the record's own score on the held-out images is."""
    one = kept.by_seed(kept.read("equal", results))["safmn"][0]
    steps, gain = kept.gains({0: one, 1: one})
    held = one.record["held_out"]
    base = one.score(held["dataset"], held["protocol"]["name"], of="bicubic")["psnr"]
    assert gain.shape == (2, len(steps)) and gain[0, -1] == pytest.approx(held["psnr"] - base, abs=0.02)
    with pytest.raises(InputError, match="same steps"):
        kept.gains({})


def test_settings_are_told_apart() -> None:
    class Trained:
        def __init__(self, title: str, **train: Any) -> None:
            self.title, self.train = title, train

    runs = [Trained("A", lr=1, steps=2, seed=0), Trained("B", lr=1, steps=3, seed=1)]
    assert kept.settings(runs) == ({"lr": 1}, {"steps": {"A": 2, "B": 3}})  # type: ignore[arg-type]
    assert kept.settings([]) == ({}, {})


def test_printed_scores_are_those_of_the_papers_own_network() -> None:
    found = {model: kept.printed(model, 4, "Set5") for model in kept.TITLES}
    assert [cells["psnr"].printed for cells in found.values() if cells] == ["32.18", "32.31", "32.64"]
    assert all(cell.verdict == "not-run" for cells in found.values() for cell in cells.values())
    assert kept.printed("safmn", 4, "BSD400") == {}


def test_an_ablation_says_what_can_be_said_of_each_row(results: Path) -> None:
    """Three seeds, one, none; a collapsed run; the row that is the paper's own."""
    table = kept.ablation("seemore", "4a", results)
    assert table.own.name == "SeemoRe-T (RME=1;SME=1)" and table.datasets == ("Urban100", "Manga109")
    assert [row.ending for row in table.rows] == ["3 seeds", "1 seed, 1 collapsed", "not trained", "3 seeds"]
    base, alone, missing, _ = (table.gap(row) for row in table.rows)
    assert base.printed["Urban100"] == -0.61 and base.interval is not None and base.interval.sure
    assert base.spread is not None and base.spread.range == pytest.approx(0.2, abs=0.03)
    assert alone.standing("Urban100", 0.1) == "no seeds" and alone.interval is None and alone.spread is not None
    assert missing.standing("Urban100", 0.1) == "no seeds" and missing.samples is None and missing.spread is None
    noise, reach = table.noise(), table.reach()
    assert noise == pytest.approx(0.1, abs=0.02), "one seed alone has no part in it"
    assert reach == pytest.approx(4.303 * noise, rel=1e-3), "Student's, of two degrees of freedom"
    assert (base.standing("Urban100", reach), base.standing("Manga109", reach)) == ("larger", "larger")
    assert kept.Gap({"x": 0.1}, base.samples).standing("x", reach) == "smaller"
    assert base.standing("Urban100", None) == "no seeds"
    bicubic = next(iter(table.own.runs.values())).psnr(scale=2, of="bicubic").mean()
    assert table.bicubic() == pytest.approx(bicubic)
    said = flat(table.summary())
    assert "2 of the 3 rows that are trained lie above it" in said and "in 19 of 20 cases" in said
    columns, rows = table.lines()
    assert all(len(row) == len(columns) for row in rows) and rows[0][0] == "Baseline" and rows[2][2] == "\u2013"
    assert rows[3][0] == "RME=1, SME=1" and "\u22123.00" in rows[1]
    assert rows[0][2] == f"{table.means()['Baseline']:.2f}" and columns[2] == "our PSNR (dB)"
    assert set(table.links(columns)) <= {*columns, *(row[0] for row in rows)}


def flat(text: str) -> str:
    return " ".join(text.split())


def test_two_records_of_one_row_and_seed_are_refused(results: Path) -> None:
    folder = results / "ablations" / "seemore-4a"
    shutil.copy(folder / "own-seed0.json", folder / "own-again.json")
    with pytest.raises(InputError, match="of one network and seed"):
        kept.ablation("seemore", "4a", results)


def test_a_table_without_the_papers_own_network_has_nothing_to_count_gaps_from() -> None:
    with pytest.raises(InputError, match="no row of the paper's own network"):
        _ = kept.Ablation("safmn", 3, ()).own


def test_pairs_are_met_swapped_or_open(results: Path) -> None:
    """Print has the whole network above the baseline; here it is 0.5 dB below it."""
    table = kept.ablation("seemore", "4a", results)
    (pair,) = table.pairs("Urban100")
    assert (pair.better, pair.worse, pair.printed, pair.outcome) == ("RME=1, SME=1", "Baseline", 0.61, "swapped")
    assert pair.ours.value == pytest.approx(-0.5, abs=0.03)
    assert [row[:3] for row in table.swapped("Urban100")[1]] == [("RME=1, SME=1", "Baseline", "+0.61")]
    said = flat(table.summary())
    assert "1 larger, 2 no seeds" in said and "0 have the printed order here, 1 the other" in said
    assert table.correlation("Urban100") == pytest.approx(-0.5), "of the three rows that are trained"
    values, printed = table.intervals("Urban100")
    assert list(values) == list(printed) == ["Baseline"]
    opened = kept.Pair("a", "b", 0.1, kept.Interval(0.1, -0.1, 0.3))
    assert opened.outcome == "open" and kept.Pair("a", "b", 0.1, kept.Interval(0.1, 0.05, 0.3)).outcome == "met"


def test_a_table_without_runs_is_told_as_it_is(tmp_path: Path) -> None:
    table = kept.ablation("safmn", 3, tmp_path)
    assert table.trained == () and table.pairs("DIV2K_val") == ()
    assert table.noise() is None and table.reach() is None and table.bicubic() is None
    assert table.correlation("DIV2K_val") is None and table.intervals("DIV2K_val") == ({}, {})
    assert "There are no two seeds" in table.summary() and "20 no seeds" in table.summary()
    assert {row[1] for row in table.lines()[1]} == {"not trained"}


def test_damaged_records_are_refused(results: Path) -> None:
    path = results / "equal" / "safmn-seed0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "scores"}))
    with pytest.raises(InputError, match="lacks 'scores'"):
        kept.read("equal", results)
    path.write_text("{")
    with pytest.raises(InputError, match="no valid JSON"):
        kept.read("equal", results)
    write(results, "ablations/safmn-3", "x-seed0", table=4, row="#N = 4")
    with pytest.raises(InputError, match="no row of table 3"):
        kept.ablation("safmn", 3, results)


def test_kept_runs_fill_no_printed_cell(tmp_path: Path) -> None:
    """Not even one that says it is at the paper's budget: the folders are not looked into."""
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "safmn-x4.json").write_text("no JSON")
    assert papers.table("safmn", 1, counts=False, records=tmp_path).counts()["within"] == 0


# --- how long a step takes -------------------------------------------------------------------------------------------


def test_steps_are_timed_in_turn_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "steps.json"
    with pytest.raises(InputError, match="not below the working folder"):
        profiling.record_steps(tmp_path.parent / "steps.json", ("safmn",), rounds=2)
    record = profiling.record_steps(path, ("safmn",), rounds=2)
    assert json.loads(path.read_text()) == record and list(record["seconds"]) == ["safmn"]
    each = record["seconds"]["safmn"]
    assert 0 < each["spread"][0] <= each["median"] <= each["spread"][1] and record["unit"] > 0
    assert record["command"][2].endswith('record_steps("steps.json", models=["safmn"], rounds=2)')
    store = Store.open(find("photos/train"))
    config = runs.configure("safmn", 4, store, budget="equal", length=runs.Length(steps=2))
    found = profiling.alternating({"a": config, "b": config}, store, rounds=2, steps=1)
    assert [len(times) for times in found.values()] == [2, 2]
    for rounds, steps in ((0, 1), (1, 2)):
        with pytest.raises(InputError):
            profiling.alternating({"a": config}, store, rounds=rounds, steps=steps)
