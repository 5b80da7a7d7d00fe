"""The evidence: recorded runs, means, gaps and trends, the weights that ship, and how a run is recorded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from filelock import FileLock, Timeout

from srlib import data, papers, results, runs
from srlib.errors import InputError
from srlib.models.seemore import SeemoReConfig
from srlib.results import Gap, interval, trend

NAMES = ("runs", "scores", "curves", "routing")
RECORDS = Path(results.__file__).parents[1] / "book/results"
MEANS = {  # PSNR (dB), standard protocol: held-out photographs, Set5, Set14
    ("ships-safmn-x2", 2): (34.31, 37.23, 32.80),
    ("ships-safmn-x3", 3): (31.56, 33.30, 29.68),
    ("ships-safmn-x4", 4): (30.42, 31.52, 28.12),
    ("ships-seemore-t-x2", 2): (34.17, 37.13, 32.77),
    ("ships-seemore-t-x3", 3): (31.43, 33.08, 29.57),
    ("ships-seemore-t-x4", 4): (30.36, 31.57, 28.16),
    ("ships-ssiu-x4", 4): (30.38, 31.61, 28.15),
    ("ships-moeisr-lte-s-edsr", 4): (30.06, 30.61, 27.64),
    ("bicubic", 2): (32.34, 33.67, 30.32),
    ("bicubic", 3): (30.22, 30.40, 27.63),
    ("bicubic", 4): (29.06, 28.43, 26.09),
}


def of_seeds(model: str) -> list[str]:
    return [f"equal-{model}-seed{seed}" for seed in range(3)]


def test_every_run_has_its_settings_its_scores_and_its_curve() -> None:
    found, scores, curves = results.runs(), results.scores(), results.curves()
    assert len(found) == found.run.nunique() >= 43
    assert set(found.purpose) <= {"ships", "equal", "precision", "ablation"}
    assert set(found.run) == set(scores.run) - {"bicubic"} == set(curves.run)
    needed = ["model", "paper", "seed", "data", "commit", "command", *results.ALIKE]
    assert not found[needed].isna().any(axis=None)
    assert curves.groupby("run").size().max() <= 120
    keys = ["run", "dataset", "scale", "protocol", "image"]
    assert not scores.duplicated(keys).any()
    assert np.isfinite(scores[["psnr", "ssim"]]).all(axis=None)


def test_scores_hold_every_digit_of_the_records() -> None:
    scores = results.scores().set_index(["run", "dataset", "scale", "protocol", "image"]).psnr
    assert scores["bicubic", "photos/held-out", 2, "liif", "camera"] == 31.208462942701324
    assert scores["bicubic", "Set5", 2, "matlab-luma", "baby"] == 37.06602830947673
    assert scores["bicubic", "photos/held-out", 4, "safmn", "camera"] == pytest.approx(27.488521032844687, abs=1e-12)


@pytest.mark.parametrize(("run", "scale"), MEANS)
def test_mean_scores_of_what_ships(run: str, scale: int) -> None:
    found = results.means([run], scale=scale).set_index("dataset")
    assert tuple(found.psnr[name] for name in results.SETS) == pytest.approx(MEANS[run, scale], abs=0.0051)
    gains = [found.psnr[name] - base for name, base in zip(results.SETS, MEANS["bicubic", scale], strict=True)]
    assert [found.gain[name] for name in results.SETS] == pytest.approx(gains, abs=0.006)


def test_every_file_that_ships_is_a_network_of_this_version() -> None:
    files = results.shipped()
    assert {*files.model} >= {paper.main for paper in papers.all_papers().values()}
    for model, scale in zip(files.model, files.scale.fillna(4), strict=True):
        assert results.load(model, scale).config


def test_an_ablation_s_runs_are_of_rows_that_its_paper_prints() -> None:
    for run in results.runs().query("purpose == 'ablation'").itertuples():
        assert run.row in [row.name for row in papers.rows(run.paper, run.table)]


def test_without_records_the_tables_are_empty_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "folder", lambda: None)
    results._say_once.cache_clear()
    assert results.runs().empty and list(results.scores()) == results.COLUMNS["scores"].split()
    assert results.means().empty
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1 and "book/results" in said.err


def test_a_gap_is_taken_image_by_image_and_leaves_out_what_was_trained_on() -> None:
    used = results.scores().query("protocol == 'safmn' and scale == 4 and image != 'woman'")
    wide = used.pivot(index=["dataset", "image"], columns="run", values="psnr")  # Set5's woman is in BSD400
    first, second = (wide[of_seeds(model)].to_numpy().T for model in ("safmn", "ssiu"))
    gap = results.gaps(of_seeds("safmn"), of_seeds("ssiu"))
    assert first.shape == (3, 22) and gap == pytest.approx(interval(first, second))
    assert results.gaps(of_seeds("ssiu"), of_seeds("safmn")[::-1]) == pytest.approx((-gap.mean, -gap.high, -gap.low))


def test_one_seed_beside_three_has_an_interval() -> None:
    """It holds what three seeds beside three give, and is as good from the other side; one beside one can't tell."""
    every = results.runs().query("paper == 'safmn' and purpose == 'ablation'")
    like = every.query("table == '3' and steps == 600")
    rows = like.groupby("row").run.agg(list)
    whole = results.gaps(rows["CCM -> None"], rows["Baseline"])
    for run in rows["CCM -> None"]:
        gap, back = results.gaps([run], rows["Baseline"]), results.gaps(rows["Baseline"], [run])
        assert gap.low < whole.mean < gap.high < 0 and back == pytest.approx((-gap.mean, -gap.high, -gap.low))
    assert math.isnan(results.gaps(rows["CCM -> None"][:1], rows["Baseline"][:1]).low)
    one = rows["CCM -> None"][:1], rows["Baseline"]
    pooled, same, alone = (results.gaps(*one, like=part) for part in (like, every, None))
    assert pooled == same, "rows of another length have no part"
    assert pooled != alone and pooled.mean == alone.mean and pooled.low < pooled.mean < pooled.high < 0


def test_any_two_networks_of_the_fair_comparison_have_a_gap() -> None:
    for pair in combinations(results.runs().query("purpose == 'equal'").model.unique(), 2):
        assert math.isfinite(results.gaps(*map(of_seeds, pair)).low), pair


def test_runs_that_cannot_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="differ in steps, batch, precision, budget: compare"):
        results.gaps(["ships-safmn-x4"], of_seeds("safmn"))
    found = results.runs()
    found.loc[found.run == "equal-ssiu-seed0", "precision"] = "bf16-mixed"
    with monkeypatch.context() as patch, pytest.raises(InputError, match="precision"):
        patch.setattr(results, "runs", lambda: found)
        results.gaps(of_seeds("safmn"), of_seeds("ssiu"))
    assert results.gaps([f"precision-safmn-bf16-seed{seed}" for seed in range(3)], of_seeds("safmn"))
    with pytest.raises(InputError, match="share no image at x3"):
        results.gaps(of_seeds("safmn"), of_seeds("ssiu"), scale=3)


def test_the_reach_of_chance_by_hand() -> None:
    """From the seeds of networks that have several: a network of one seed tells nothing."""
    table = results.runs().query("paper == 'safmn' and table == '3' and steps == 600")
    used = results.scores().query("protocol == 'safmn' and dataset in @results.SETS and image != 'woman'")
    means = table.merge(used.groupby("run").psnr.mean().reset_index()).groupby("row").psnr
    several = means.count() > 1
    variance = (means.var() * (means.count() - 1))[several].sum() / (means.count() - 1)[several].sum()
    free = int((means.count() - 1).sum())
    assert results.reach(table) == pytest.approx((scipy.stats.t.ppf(0.975, free) * math.sqrt(2 * variance), free))
    assert math.isnan(results.reach(table[table.seed == 0])[0])


def test_interval_of_seeds_and_images_by_hand() -> None:
    """Two seeds beside one, two images: both parts have one degree of freedom."""
    gap = interval(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 1.0]]))
    variance = 2.0 * (1 / 2 + 1 / 1) + 0.5 / 2  # of the seeds' means 1.5 and 3.5, of the images' gaps 1 and 2
    half = scipy.stats.t.ppf(0.975, 1) * math.sqrt(variance)
    assert gap == pytest.approx((1.5, 1.5 - half, 1.5 + half))
    assert gap.text == f"+1.50 (\N{MINUS SIGN}{half - 1.5:.2f} to +{1.5 + half:.2f})"


@pytest.mark.parametrize(("seeds", "images", "both"), [(1.0, 0.2, 0.2), (0.3, 1.0, 0.5), (0.05, 1.0, 0.3)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_interval_holds_the_truth_19_times_of_20(count: int, seeds: float, images: float, both: float) -> None:
    """Two networks of equal quality, of ``count`` seeds and of three; chance from seeds, from images and from both. Two
    more of three seeds make the interval narrower, and it holds the truth as often."""
    draw, held, width = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for _ in range(600):
        one, other, *more = (draw.normal(0, seeds, (n, 1)) + draw.normal(0, both, (n, 22)) for n in (count, 3, 3, 3))
        gaps = [interval(one + draw.normal(0, images, 22), other, others) for others in ([], more)]
        held += [gap.low <= 0 <= gap.high for gap in gaps]
        width += [gap.high - gap.low for gap in gaps]
    assert (held / 600 >= 0.93).all() and width[1] < width[0]


def test_trend() -> None:
    sure, unsure = Gap(-0.1, -0.2, -0.05), (Gap(-0.1, -0.2, 0.01), Gap(-0.1, math.nan, math.nan))
    assert (trend(-0.3, sure), trend(0.3, sure), trend(0.0, sure)) == ("agrees", "opposite", "undecided")
    assert [trend(-0.3, gap) for gap in unsure] == ["undecided"] * 2


def test_shipped_weights_say_how_they_were_trained_and_agree_with_the_records() -> None:
    found = results.shipped().set_index("file")
    recorded = results.runs().dropna(subset="weights").set_index("weights")
    assert sorted(found.index) == sorted(recorded.index)
    columns = ["model", "steps", "batch", "patch", "data", "precision"]
    ours, theirs = (one[columns].astype(str).sort_index() for one in (found, recorded))
    assert ours.equals(theirs.rename_axis("file"))


def test_a_shipped_network_scores_as_recorded() -> None:
    from srlib.evaluate import score, upscaler

    found = results.trained("safmn", 4)
    assert found.caption == "20,000 steps of batch 16 on BSD400" and found.run is None and not found.network.training
    assert next(found.network.parameters()).dtype == torch.float32
    store = data.Store.open("photos/held-out")
    scored = score(upscaler(found.network, 4), store, 4, papers.protocol(results.STANDARD))
    assert scored.psnr == pytest.approx(results.means(["ships-safmn-x4"], results.SETS[:1]).psnr.item(), abs=1e-3)


@pytest.mark.parametrize("ask", [results.load, results.trained])
def test_a_network_that_does_not_ship_is_refused_with_what_does(ask: Callable[..., object]) -> None:
    with pytest.raises(InputError, match="no weights ssiu-x3.*ssiu-x4"):
        ask("ssiu", 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run of SAFMN of three steps."""
    store, root = data.Store.open("photos/train"), tmp_path_factory.mktemp("runs")
    config = runs.configure("safmn", 4, store, steps=3, batch=1, patch=16)
    return runs.train_or_load(config, store, data.Store.open("photos/held-out"), root=root, device="cpu")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the records, and a folder for weights."""
    for name in NAMES:
        shutil.copy(RECORDS / f"{name}.csv", tmp_path)
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    monkeypatch.setattr(results, "WEIGHTS", tmp_path)
    return tmp_path


def test_a_run_is_recorded_once_and_changes_no_other_line(trained: runs.Run, records: Path) -> None:
    before = {name: (records / f"{name}.csv").read_text().splitlines() for name in NAMES}
    for _ in range(2):
        found = results.record(trained, "equal-safmn-x", "equal", [data.Store.open("photos/held-out")])
    assert found.psnr.item() == pytest.approx(trained.held_out["psnr"]) and found.lr.item() == "matlab-bicubic"
    line = results.runs().set_index("run").loc["equal-safmn-x"]
    assert (line.model, line.steps, line.batch, line.patch, line.paper) == ("safmn", 3, 1, 16, "safmn")
    assert line.commit and line.device and line.seconds > 0 and line.data == "photos/train"
    for name, lines in before.items():
        after = (records / f"{name}.csv").read_text().splitlines()
        new = [line for line in after if line.startswith("equal-safmn-x,")]
        assert len(new) == {"runs": 1, "scores": 4, "curves": 3, "routing": 0}[name]
        assert [line for line in after if line not in new] == lines


def test_the_records_are_locked_while_a_run_is_written(
    trained: runs.Run, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        with pytest.raises(Timeout):
            FileLock(records / ".lock").acquire(timeout=0)
        written.append(1)

    written: list[int] = []
    monkeypatch.setattr(results, "_write", write)
    results.record(trained, "equal-safmn-x", "equal", [data.Store.open("photos/held-out")])
    assert len(written) == 4


@pytest.mark.parametrize("row", ["Baseline", "baseline"])
def test_a_row_is_recorded_by_its_printed_name_and_the_run_s_own_version(
    trained: runs.Run, records: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """However the command line named it: by its label, its name or its slug; of several processes with their number."""
    words = "srlib train safmn --runs /a --data B --record=/c.json --data-root '/d e' --seed 1"
    made = trained.provenance | {"processes": 2, "device": "EPYC, 1 thread", "command": words, "version": 7}
    monkeypatch.setattr(runs.Run, "provenance", made)
    store = data.Store.open("photos/held-out")
    results.record(trained, "ablation4k-safmn-3-baseline-seed0", "ablation", [store], table="3", row=row)
    line = results.runs().set_index("run").loc["ablation4k-safmn-3-baseline-seed0"]
    assert (line.paper, line.table, line["row"]) == ("safmn", "3", "Baseline")
    assert line.device == "EPYC, 1 thread in each of 2 processes" and line.version == 7
    assert line.command == "srlib train safmn --data B --seed 1"


def test_what_no_record_can_be_is_refused(trained: runs.Run, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = data.Store.open("photos/held-out")
    with pytest.raises(InputError, match="baseline"):
        results.record(trained, "bicubic", "equal", [store])
    with pytest.raises(InputError, match="photos/held-out"):
        results.record(trained, "equal-safmn-x4", "equal", [])
    with pytest.raises(InputError, match=r"LR real-esrgan.* is not that of the records .*LR matlab-bicubic"):
        results.record(trained, "equal-safmn-x4", "equal", [data.degraded(store)])
    bicubic = (records / "scores.csv").read_text()
    (records / "scores.csv").write_text(bicubic.replace(store.fingerprint[:12], 12 * "0"))
    with pytest.raises(InputError, match="not that of the records .0{12}, LR matlab-bicubic.: `srlib data get`"):
        results.record(trained, "equal-safmn-x4", "equal", [store])
    with pytest.raises(InputError, match="which row"):
        results.record(trained, "ablation-safmn-3", "ablation", [store])
    with pytest.raises(InputError, match="no rows 'CCM -> all'"):
        results.record(trained, "ablation-safmn-3", "ablation", [store], table="3", row="CCM -> all")
    with pytest.raises(InputError, match="is no run of w/ SE: give the row"):
        results.record(trained, "ablation-safmn-3", "ablation", [store], table="3", row="w/ SE")
    monkeypatch.setattr(papers, "row", lambda *_: papers.Row("lr", trained.network().config, "safmn", train={"lr": 1}))
    with pytest.raises(InputError, match="is no run of lr: give the row"):
        results.record(trained, "ablation-safmn-3", "ablation", [store], table="3", row="lr")


def test_weights_that_are_no_better_do_not_ship(trained: runs.Run, records: Path) -> None:
    with pytest.raises(InputError, match="those that ship 30.42 dB, bicubic 29.06 dB: it must be better"):
        results.record(trained, "ships-safmn-x4", "ships", [data.Store.open("photos/held-out")])
    assert (records / "runs.csv").read_bytes() == (RECORDS / "runs.csv").read_bytes()
    assert results.shipped().empty


def test_better_weights_ship_in_half_precision(
    trained: runs.Run, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        header = (RECORDS / f"{name}.csv").read_text().splitlines()[0]
        (records / f"{name}.csv").write_text(header + "\n")
    with pytest.raises(InputError, match=r"with [\d.]+ dB, bicubic 29.06 dB: it must be better to ship"):
        results.record(trained, "ships-safmn-x4", "ships", [data.Store.open("photos/held-out")])
    black = lambda lr: torch.zeros(1, 3, 4 * lr.shape[2], 4 * lr.shape[3])  # noqa: E731
    monkeypatch.setattr(results, "bicubic", lambda scale: black)
    results.record(trained, "ships-safmn-x4", "ships", [data.Store.open("photos/held-out")])
    assert results.shipped().iloc[0][["file", "model", "steps"]].tolist() == ["safmn-x4.safetensors", "safmn", 3]
    loaded, own = results.load("safmn", 4).state_dict(), trained.network().state_dict()
    assert all(torch.equal(loaded[key], own[key].half().float()) for key in own)
    with pytest.raises(InputError, match="safmn-x4.safetensors ships as ships-safmn-x4: record it under that id"):
        results.record(trained, "ships-better", "ships", [data.Store.open("photos/held-out")])


def test_another_budget_trains_what_is_asked_for(trained: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[runs.RunConfig] = []
    monkeypatch.setattr(runs, "train_or_load", lambda config, *_, **__: asked.append(config) or trained)
    found = results.trained("safmn", 2, "smoke", seed=3, device="cpu")
    assert [(one.scale, one.train.seed, one.train.steps, one.data) for one in asked] == [(2, 3, 800, "photos/train")]
    assert found.run is trained and found.caption == "3 steps of batch 4 on photos/train"


def test_a_network_of_experts_is_recorded_with_how_often_it_uses_them(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, held_out = (data.Store.open(f"photos/{part}") for part in ("train", "held-out"))
    small = SeemoReConfig(scale=4, channels=8, groups=2)
    config = runs.configure("seemore-t", 4, store, network=small, steps=1, batch=1, patch=16)
    run = runs.train_or_load(config, store, held_out, root=tmp_path / "runs", device="cpu")
    with pytest.raises(InputError, match="is no run of seemore-t"):
        results.record(run, "equal-seemore-t-seed3", "equal", [held_out])
    monkeypatch.setattr(results, "default_config", lambda *_: small)
    with pytest.raises(InputError, match="is a variant of seemore-t: only the network as released ships"):
        results.record(run, "ships-seemore-t-x4", "ships", [held_out])
    results.record(run, "equal-seemore-t-seed3", "equal", [held_out])
    found = results.routing().query("run == 'equal-seemore-t-seed3'")
    assert found.groupby("place").share.sum().to_dict() == pytest.approx({"group 1": 1, "group 2": 1}, abs=1e-5)
    assert found.expert.tolist() == ["rank 2", "rank 4", "rank 8"] * 2
