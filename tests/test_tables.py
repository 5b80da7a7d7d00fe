"""Printed tables beside ours: every cell's verdict, an ablation's trend, and a ledger without gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from srlib import papers, results, tables
from srlib.errors import InputError

TOTALS = {  # counted cells: exact, within, differs
    "safmn": {"1": (9, 0, 0), "3": (56, 6, 1), "4": (8, 2, 2)},
    "seemore": {"1": (12, 0, 0), "2": (3, 0, 1), "3b": (2, 0, 0), "4a": (8, 0, 0), "4c": (5, 1, 0), "5a": (5, 1, 0)}
    | {"7": (7, 1, 0), "8": (0, 2, 0), "9": (6, 0, 0), "10": (4, 0, 2), "13": (5, 0, 1), "14": (3, 0, 0)},
    "ssiu": {"1": (10, 0, 2), "3": (4, 0, 2), "4": (4, 0, 0)},
    "moeisr": {"3": (81, 15, 0), "4": (8, 0, 12)},
}
RUNS = "run purpose model scale paper table row seed budget steps batch patch data fingerprint collapsed_at".split()
SCORES = "run dataset scale protocol lr image psnr ssim".split()


@pytest.fixture(scope="module")
def every() -> list[pd.DataFrame]:
    """All tables, with the evidence that comes with the repository."""
    return tables.all_tables()


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what ``results`` has: lines of runs and of scores."""

    def set_to(runs: list[tuple[Any, ...]], scores: list[tuple[Any, ...]]) -> None:
        told = (
            pd.DataFrame(runs, columns=RUNS).assign(version=1, precision="32-true"),
            pd.DataFrame(scores, columns=SCORES),
        )
        monkeypatch.setattr(results, "runs", lambda: told[0].astype({"scale": "Int64", "collapsed_at": "Int64"}))
        monkeypatch.setattr(results, "scores", lambda: told[1].astype({"psnr": float, "ssim": float}))

    set_to([], [])
    return set_to


def cell(frame: pd.DataFrame, row: str, scale: int, metric: str, dataset: str = "") -> pd.Series:
    """The one cell with these keys."""
    found = frame.query("row == @row and scale == @scale and metric == @metric and dataset == @dataset")
    assert len(found) == 1
    return found.iloc[0]


def test_counted_cells_come_out_as_ever(every: list[pd.DataFrame]) -> None:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for frame in every:
        counted = frame[frame.metric.isin(tables.COUNTED) & (frame.verdict != "not-run")].verdict
        if len(counted):
            place = found.setdefault(frame.paper[0], {})
            place[frame.table[0]] = tuple(int((counted == one).sum()) for one in ("exact", "within", "differs"))
    assert found == TOTALS


def test_some_cells_to_the_last_digit(every: list[pd.DataFrame]) -> None:
    frames = {(frame.paper[0], frame.table[0]): frame for frame in every}
    for paper, number, row, scale, metric, dataset, ours in (
        ("safmn", "1", "SAFMN (Ours)", 2, "params", "", 227.82),
        ("safmn", "3", "Baseline", 4, "flops", "", 13.55491584),
        ("safmn", "3", "w/ SE", 4, "params", "", 260.976),
        ("seemore", "1", "SeemoRe-T (ours)", 2, "params", "", 220.104),
        ("ssiu", "1", "Ours", 2, "flops", "", 167.7053133),
        ("moeisr", "4", "LIIF -5layer", 2, "flops", "Urban100", 1071.2040),
    ):
        found = cell(frames[paper, number], row, scale, metric, dataset)
        assert found.ours == pytest.approx(ours, rel=1e-6), (paper, number, row)
    route = cell(frames["seemore", "1"], "SeemoRe-T (ours)", 2, "macs").note
    assert "44.33 to 45.22 G over all routes; here: ranks that add up to 28" in route
    mapper = frames["moeisr", "3"].query("row == 'EDSR-MoEISR(LIIF)-b' and scale == 2 and unit == 'T'").iloc[0]
    assert mapper.verdict == "not-run" and "with the shallowest expert everywhere" in mapper.note


def test_verdicts_go_by_the_printed_digits() -> None:
    """A tie may be printed as the even digit or as the upper one; one unit of the last digit is within, more is not."""
    exact = [("228", 227.5), ("228", 228.5), ("229", 228.5), ("76.7", 76.70016)]
    others = [("228", 229.0), ("228", 229.01), ("227", 228.5)]
    assert [tables.verdict(*pair) for pair in exact + others] == ["exact"] * 4 + ["within", "differs", "differs"]


def test_scores_have_their_own_tolerance() -> None:
    psnr = [tables.verdict("33.66", ours, tables.TOLERANCE["psnr"]) for ours in (33.664, 33.68, 33.681)]
    assert psnr == ["exact", "within", "differs"]


def test_a_cell_without_ours_says_why(every: list[pd.DataFrame]) -> None:
    cells = pd.concat(every)
    assert (cells.ours.isna() == (cells.verdict == "not-run")).all()
    assert (cells.note != "").where(cells.verdict == "not-run", True).all()
    frames = {(frame.paper[0], frame.table[0]): frame for frame in every}
    assert cell(frames["safmn", "1"], "CARN", 4, "flops").note == "peer, as printed"
    assert "500,000 steps" in cell(frames["safmn", "3"], "Baseline", 4, "psnr", "Manga109").note
    assert "GPU" in frames["safmn", "5"].note[0] and "RealSRSet" in frames["seemore", "15"].note[0]
    quick = tables.table("safmn", "3", counts=False)
    assert set(quick.verdict) == {"not-run"} and cell(quick, "Baseline", 4, "flops").note == "not counted in this call"


def test_the_ledger_explains_every_own_count_that_is_not_exact(every: list[pd.DataFrame]) -> None:
    cells, entries = pd.concat(every), tables.ledger()
    unmet = cells[cells.own & cells.metric.isin(tables.COUNTED) & cells.verdict.isin(["within", "differs"])]
    counted = entries[(entries.kind == "cell") & entries.metric.isin(tables.COUNTED)]
    assert len(unmet) == len(counted)
    for one in unmet.itertuples():
        place = {"paper": one.paper, "table": one.table, "scale": str(one.scale), "dataset": one.dataset}
        same = counted[counted[[*place]].eq(list(place.values())).all(axis=1) & counted.metric.eq(one.metric)]
        assert same.row.isin([one.row, f"{one.row} ({one.variant})"]).sum() == 1, one
    assert set(entries.kind) == {"cell", "print", "release", "choice"}
    assert (entries[["row", "printed", "ours", "explanation", "evidence"]] != "").all(axis=None)
    baseline = counted.query("table == '3' and row == 'Baseline'").iloc[0]
    assert (baseline.printed, baseline.ours, baseline.verdict) == ("13.56 G", "13.5549 G", "within")


def test_an_entry_that_explains_no_cell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = papers.ledger("ssiu").replace({"row": {"Ours": "Theirs"}})
    monkeypatch.setattr(papers, "ledger", lambda slug: stale)
    with pytest.raises(InputError, match="the ledger of ssiu explains 0 cells by 'Theirs'"):
        tables.ledger("ssiu")


def test_bicubic_s_rows_take_bicubic_s_scores(evidence: Any) -> None:
    line = ("bicubic", "Set5", 2, "matlab-luma", "matlab-bicubic of luma", "baby")
    other = ("bicubic", "Set14", 2, "safmn", "matlab-bicubic", "comic")
    evidence([], [(*line, 33.65, 0.93), (*line[:5], "bird", 33.67, 0.93), (*other, 30.24, 0.8688)])
    frame = tables.table("safmn", "1", counts=False)
    found = cell(frame, "Bicubic", 2, "psnr", "Set5")
    assert (found.ours, found.verdict, found.note) == (pytest.approx(33.66), "exact", "protocol matlab-luma")
    assert cell(frame, "Bicubic", 2, "psnr", "Set14").verdict == "not-run", "another protocol"
    assert cell(frame, "Bicubic", 3, "psnr", "Set5").note == "bicubic has no scores on Set5"


def test_a_dataset_that_is_not_whole_fills_no_cell(evidence: Any) -> None:
    name = "Set14 (9 of 14 images)"
    ships = ("ships-safmn-x4", "ships", "safmn", 4, None, None, None, 0, "short", 20_000, 16, 64, "BSD400", "f9", None)
    bicubic = ("bicubic", name, 4, "matlab-luma", "", "comic", 26.0, 0.7027)
    evidence([ships], [bicubic, ("ships-safmn-x4", name, 4, "safmn", "", "comic", 28.6, 0.7813)])
    frame = tables.table("safmn", "1", counts=False)
    assert set(frame.verdict) == {"not-run"} and frame.trained.isna().all() and set(frame.budget) == {""}


SHORT, LONG = (f"{steps} steps of batch 8, patch 32, on BSD400" for steps in ("600", "4,000"))


def trainings(steps: int, seeds: int = 1, collapsed: str = "", **gains: float) -> tuple[list[Any], list[Any]]:
    """Made-up runs of rows of SAFMN's Table 3, three of the baseline and ``seeds`` of the others, and their scores:
    ``gains`` dB above the baseline's."""
    names, runs, scores = {"ccm": "CCM -> None", "safm": "SAFM -> None", "se": "w/ SE"}, [], []
    for key, gain in {"base": 0.0, **gains}.items():
        for seed in range(seeds if gain else 3):
            name, at = f"{key}-{steps}-{seed}", 70 if key == collapsed else None
            place = ("safmn", 4, "safmn", "3", names.get(key, "Baseline"), seed)
            runs.append((name, "ablation", *place, "smoke", steps, 8, 32, "BSD400", "f9", at))
            chance = [0.001 * seed * image for image in range(4)]
            where = ("Set14", 4, "safmn", "")
            scores += [(name, *where, f"image{i}", 26 + i + gain + more, 0.7) for i, more in enumerate(chance)]
    return runs, scores


def recorded(*parts: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
    """Several trainings at once."""
    return sum((runs for runs, _ in parts), []), sum((scores for _, scores in parts), [])


def test_a_row_s_gap_to_the_baseline_has_a_trend(evidence: Any) -> None:
    evidence(*trainings(600, seeds=3, ccm=-0.5, safm=0.3))
    found = tables.ablation("safmn", "3").set_index("row")
    assert found.gap_printed["CCM -> None"] == -0.74 and found.trend["CCM -> None"] == "agrees"
    assert found.gap_printed["SAFM -> None"] == -0.17 and found.trend["SAFM -> None"] == "opposite"
    assert found.gap["CCM -> None"] == pytest.approx(-0.5) and found.gap_high["CCM -> None"] < 0
    assert found.runs["CCM -> None"] == "ccm-600-0 ccm-600-1 ccm-600-2"
    assert found.budget["CCM -> None"] == f"{SHORT}, 3 seeds"
    assert pd.isna(found.gap["w/ SE"]) and found.trend["w/ SE"] == "" and found.gap_printed["w/ SE"] == -0.04
    assert found.trend["Baseline"] == "" and set(tables.table("safmn", "3", counts=False).verdict) == {"not-run"}


def test_a_table_takes_the_training_that_most_of_its_rows_had_and_of_these_the_longest(evidence: Any) -> None:
    short, long = trainings(600, seeds=3, ccm=-0.5, safm=0.3), trainings(4000, ccm=-0.6)
    evidence(*recorded(short, long))
    found = tables.ablation("safmn", "3").set_index("row")
    assert set(found.training) - {""} == {SHORT}, "two rows of three"
    evidence(*recorded(short, trainings(4000, ccm=-0.6, safm=0.4)))
    found = tables.ablation("safmn", "3").set_index("row")
    assert set(found.training) - {""} == {LONG}, "as many rows, and longer"
    assert found.runs["CCM -> None"] == "ccm-4000-0" and found.trend["CCM -> None"] == "agrees", "one seed can tell"
    runs, scores = trainings(9000, ccm=-0.6, safm=0.4, se=0.1)
    evidence(*recorded(short, (runs[3:], scores)))
    assert set(tables.ablation("safmn", "3").training) - {""} == {SHORT}, "no baseline there"


def test_a_run_stands_for_the_rows_of_other_tables_that_are_the_same_network(evidence: Any) -> None:
    runs, scores, where = [], [], ("Set14", 2, "safmn", "")
    full, kernel, loss = "SeemoRe-T (RME=1;SME=1)", "SeemoRe-T (kernel=3)", "SeemoRe-T (L1=1.0;FFT=0.0)"
    trained = ("4a", full, 0, 30.0), ("4a", full, 1, 30.1), ("4c", kernel, 0, 29.5), ("12", loss, 0, 30.6)
    for number, row, seed, psnr in trained:
        name, place = f"{number}-{seed}", ("seemore-t", 2, "seemore", number, row, seed)
        runs.append((name, "ablation", *place, "", 3000, 8, 32, "BSD400", "f9", None))
        scores += [(name, *where, f"image{i}", psnr + i, 0.9) for i in range(3)]
    evidence(runs, scores)
    for number, row, gap in (("4c", kernel, -0.55), ("12", loss, 0.55)):  # both are beside the network of Table 4a
        found = tables.ablation("seemore", number, lengths=True).set_index("name").gap.dropna()
        assert found.to_dict() == {row: pytest.approx(gap)}


def test_a_table_of_our_own_has_the_gaps_of_its_trained_rows(evidence: Any) -> None:
    runs, scores = [], []
    for row, seed, gain in (("MoEISR(LTE)-s", 0, 0.0), ("MoEISR(LTE)-s", 1, 0.1), ("tau = 5", 0, -0.4)):
        place = ("moeisr-lte-s-edsr", None, "moeisr", "mapper", row, seed)
        runs.append((f"{row}-{seed}", "ablation", *place, "", 3000, 4, 24, "BSD400", "f9", None))
        where = (f"{row}-{seed}", "photos/held-out", 4, "safmn", "matlab-bicubic")
        scores += [(*where, f"image{i}", 30 + i + gain, 0.9) for i in range(3)]
    evidence(runs, scores)
    base, tau = tables.own_table("moeisr", "mapper").to_dict("records")
    assert (base["row"], base["gap"], base["runs"]) == ("MoEISR(LTE)-s", "", "MoEISR(LTE)-s-0 MoEISR(LTE)-s-1")
    assert tau["psnr"] == pytest.approx(30.6) and tau["gap"].startswith("\N{MINUS SIGN}0.45 (")
    assert tau["training"] == "3,000 steps of batch 4, patch 24, on BSD400"
    assert tables.own_table("ssiu", "s3b").empty


def test_other_lengths_stay_in_sight_with_what_changed(evidence: Any) -> None:
    evidence(*recorded(trainings(600, ccm=-0.5, safm=0.3), trainings(4000, collapsed="se", ccm=-0.6, safm=-0.2, se=-3)))
    assert not tables.ablation("safmn", "3").row.duplicated().any()
    found = tables.ablation("safmn", "3", lengths=True)
    both = found[found.row == "SAFM -> None"]
    assert both.steps.tolist() == [4000, 600] and both.trend.tolist() == ["agrees", "opposite"]
    assert both.ours.str[:5].tolist() == ["\N{MINUS SIGN}0.20", "+0.30"]
    assert tables.summary(found).splitlines() == [
        f"- **{LONG}:** agrees: 2 (`SAFM -> None`, `CCM -> None`); collapsed: 1 (`w/ SE`).",
        f"- **{SHORT}:** agrees: 1 (`CCM -> None`); opposite: 1 (`SAFM -> None`).",
        "- **With the longer training** 1 of 2 rows changed: `SAFM -> None` from opposite to agrees.",
    ]
    evidence([], [])
    assert tables.summary(tables.ablation("safmn", "3", lengths=True)) == "No row beside the baseline is trained yet."


def test_a_collapse_is_told_and_has_no_trend(evidence: Any) -> None:
    evidence(*trainings(600, collapsed="se", ccm=-0.5, se=-3))
    found = tables.ablation("safmn", "3").set_index("row").loc["w/ SE"]
    assert found.gap < -2.9 and found.trend == "undecided" and found.ended == "collapsed at step 70"
    assert found.budget == f"{SHORT}, collapsed at step 70"


def test_a_row_that_is_not_scored_on_what_gaps_are_taken_from_has_none(evidence: Any) -> None:
    runs, scores = trainings(600, ccm=-0.5)
    evidence(runs, [(run, "Urban100" if run == "ccm-600-0" else name, *rest) for run, name, *rest in scores])
    assert tables.table("safmn", "3", counts=False).gap.isna().all()
    with pytest.raises(InputError, match="table 5 of safmn has no PSNR"):
        tables.ablation("safmn", "5")


def test_a_gap_is_to_the_baseline_at_the_same_scale() -> None:
    found = tables.ablation("moeisr", "4").query("row == 'RDN-MoEISR(LIIF) -b'").set_index("scale").gap_printed
    assert found.to_dict() == {2: 0.06, 3: 0.08, 4: 0.06, 6: 0.04, 8: 0.05}


@pytest.mark.parametrize(("budget", "verdict"), [("short", "not-run"), ("paper", "exact")])
def test_only_the_paper_s_whole_training_gets_a_verdict(evidence: Any, budget: str, verdict: str) -> None:
    ships = ("ships-ssiu-x4", "ships", "ssiu", 4, None, None, None, 0, budget, 1000, 40, 64, "DF2K", "f9", None)
    row = ("row", "ablation", "ssiu", 4, "ssiu", "3", "SSIU", 0, "paper", 1000, 40, 64, "DF2K", "f9", None)
    scores = [("ships-ssiu-x4", 32.631), ("row", 20.0)]
    evidence([ships, row], [(run, "Set5", 4, "ssiu", "", "baby", psnr, 0.9032) for run, psnr in scores])
    found = cell(tables.table("ssiu", "1", counts=False), "Ours", 4, "psnr", "Set5")
    assert found.trained == 32.631 and found.verdict == verdict, "32.631 is printed as 32.64: its release rounds up"
    assert found.budget == "1,000 steps of batch 40, patch 64, on DF2K" and found.runs == "ships-ssiu-x4"


def test_the_readme_has_the_numbers_of_today(every: list[pd.DataFrame]) -> None:
    """Its four numbers, as the first page of the book counts them."""
    cells, claims = pd.concat(every), papers.claims()
    run = cells[cells.verdict != "not-run"]
    counts = run[run.own & run.metric.isin(tables.COUNTED)].verdict == "exact"
    bicubic = run[run["row"] == "Bicubic"].verdict != "differs"
    rows = cells[cells.trend != ""].drop_duplicates(["paper", "table", "row", "variant"]).trend == "agrees"
    held = claims.verdict.isin(["holds", "holds in part"])
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert [f"| {one.sum()} of {len(one)} |" in readme for one in (counts, bicubic, rows, held)] == [True] * 4


@pytest.mark.skipif(results.folder() is None, reason="the evidence lies in the repository, in book/results")
def test_bicubic_s_rows_of_the_book(every: list[pd.DataFrame]) -> None:
    bicubic = pd.concat(every).query("row == 'Bicubic'").verdict.value_counts()
    assert (bicubic["exact"], bicubic["within"], bicubic["differs"]) == (21, 12, 3)
