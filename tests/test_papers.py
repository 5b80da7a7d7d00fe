"""Printed tables: every count by hand, the logic of verdicts, and a ledger without gaps or dead entries."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from srlib import complexity, papers
from srlib.errors import InputError
from srlib.models.safmn import FMM, SAFMNConfig
from srlib.papers import safmn

ROWS = [(number, row) for number in (1, 3, 4) for row in papers.rows("safmn", number)]
NAMES = [f"{number}-{row.slug}-x{row.config.scale}" for number, row in ROWS]


@pytest.fixture(scope="module")
def filled() -> dict[int, papers.Table]:
    """All tables, each network counted once."""
    return {t.number: t for t in papers.all_tables()}


def by_hand(c: SAFMNConfig) -> dict[str, int]:
    """Parameters, multiply-adds and activations of a configuration, worked out on paper from Section 3."""
    height, width = {2: (360, 640), 3: (240, 427), 4: (180, 320)}[c.scale]
    pixels, wide, out = height * width, 2 * 36, 3 * c.scale**2
    small = [(height // 2**i) * (width // 2**i) for i in (1, 2, 3)]
    norm_params = {"layer": 72, "batch": 72, "none": 0, "frozen_batch": 0, "l2": 0}[c.norm]
    norm_macs = 5 * 36 * pixels if c.norm == "batch" else 0

    params = macs = acts = 0
    if c.safm == "safm":
        params += norm_params + 36 * (9 + 1)
        macs += norm_macs + 9 * 9 * (pixels + (sum(small) if c.multi_scale else 3 * pixels))
        acts += 9 * (pixels + (sum(small) if c.multi_scale else 3 * pixels))
        if c.multi_scale:
            macs += 3 * 9 * pixels  # nearest upsampling, a value put out
            macs += {"max": 0, "average": 3 * 9 * pixels, "nearest": 9 * sum(small)}[c.pooling]
        if c.aggregation:
            params, macs, acts = params + 36 * 37, macs + 36 * 36 * pixels, acts + 36 * pixels
    if c.ccm != "none":
        kernel = 1 if c.ccm == "channel_mlp" else 9
        params += norm_params + wide * (36 * kernel + 1) + 36 * (wide + 1)
        macs += norm_macs + wide * 36 * kernel * pixels + 36 * wide * pixels
        acts += (wide + 36) * pixels
        if c.ccm == "inverted_residual":
            params, macs, acts = params + wide * 10, macs + wide * 9 * pixels, acts + wide * pixels
        if c.ccm == "se":
            params, macs, acts = params + 18 * 73 + 72 * 19, macs + wide * pixels + 2 * 18 * 72, acts + 18 + 72
    return {
        "params": 36 * (3 * 9 + 1) + c.blocks * params + out * (36 * 9 + 1),
        "flops": (36 * 3 * 9 + out * 36 * 9) * pixels + c.blocks * macs,
        "acts": (36 + out) * pixels + c.blocks * acts,
    }


@pytest.mark.parametrize(("number", "row"), ROWS, ids=NAMES)
def test_every_count_is_the_one_worked_out_by_hand(
    filled: dict[int, papers.Table], number: int, row: papers.Row
) -> None:
    for metric, ours in by_hand(row.config).items():
        cell = filled[number].cell(row.label, metric, row.config.scale)
        assert cell.ours == pytest.approx(ours / papers.SCALING[cell.unit], rel=1e-12), metric


def test_every_count_is_exact_or_in_the_ledger(filled: dict[int, papers.Table]) -> None:
    own = {(number, row.label, row.config.scale) for number, row in ROWS}
    cells = [
        (t.number, c) for t in filled.values() for c in t.cells
        if c.metric in papers.STATIC and (t.number, c.row, c.scale) in own
    ]  # fmt: skip
    assert len(cells) == 3 * len(ROWS) == 84 and all(c.ours is not None for _, c in cells)
    unmet = {(number, c.row, c.scale, c.metric) for number, c in cells if c.verdict != "exact"}
    entries = [e for e in papers.ledger("safmn", filled.values()) if e.kind == "cell"]
    explained = [(e.table, e.row, e.scale, e.metric) for e in entries]
    assert len(set(explained)) == len(explained) and set(explained) == unmet
    assert all(e.explanation and e.evidence and e.verdict in ("within", "differs") for e in entries)


@pytest.mark.parametrize("row", ["Baseline, misspelt", "LN -> BN"])
def test_a_stale_explanation_is_refused(
    filled: dict[int, papers.Table], monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    stale = replace(safmn.ROUNDED_TWICE, rows=(row,))
    monkeypatch.setattr(safmn, "EXPLANATIONS", (stale,))
    with pytest.raises(InputError, match="cells for row" if "misspelt" in row else "take the entry out"):
        papers.ledger("safmn", filled.values())


def test_differences_say_what_is_printed_and_what_is_done() -> None:
    entries = papers.differences("safmn")
    assert {e.kind for e in entries} == {"release", "choice"}
    assert all(e.row and e.printed and e.ours and e.explanation and e.evidence for e in entries)
    assert len({(e.kind, e.row) for e in entries}) == len(entries)


def test_the_figures_that_the_ledger_names(filled: dict[int, papers.Table]) -> None:
    base = SAFMNConfig()
    pixels = 180 * 320
    assert by_hand(base)["flops"] == 13_542_474_240 + 12_441_600 and 24 * 9 * pixels == 12_441_600
    assert by_hand(replace(base, safm="none"))["acts"] == 948 * pixels == 54_604_800
    assert by_hand(replace(base, ccm="inverted_residual"))["acts"] == 76_700_160 + 8 * 72 * pixels == 109_877_760
    assert by_hand(replace(base, blocks=12))["params"] == by_hand(base)["params"] + 4 * 27_864 == 350_976
    assert by_hand(replace(base, norm="batch"))["flops"] - by_hand(base)["flops"] == 165_888_000
    one_by_one = by_hand(replace(base, ccm="channel_mlp"))["params"] + 8 * 72 * 10
    assert round(one_by_one / 1e3, 2) == 79.39


def test_rows_are_the_printed_ones_in_order() -> None:
    for number in (3, 4):
        assert tuple(row.label for row in papers.rows("safmn", number)) == papers.labels("safmn", number)
    assert {row.label for row in papers.rows("safmn", 1)} <= set(papers.labels("safmn", 1))
    assert papers.rows("safmn", 2) == papers.rows("safmn", 5) == ()
    assert {row.label: row.lr for row in papers.rows("safmn", 3) if row.lr} == {
        "LN -> None, lr=1x10^-3 *": 1e-3,
        "LN -> None, lr=1x10^-4": 1e-4,
    }


@pytest.mark.parametrize(("number", "row"), ROWS, ids=NAMES)
def test_every_row_builds_runs_and_learns(number: int, row: papers.Row) -> None:
    network = papers.create_row("safmn", replace(row, config=replace(row.config, blocks=1)))
    for batch in (1, 2):
        out = network(torch.rand(batch, 3, 11, 17))
        assert out.shape == (batch, 3, 11 * row.config.scale, 17 * row.config.scale)
    out.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_row_is_found_by_label_slug_and_scale() -> None:
    assert papers.row("safmn", 3, "LN -> BN") == papers.row("safmn", "3", "ln-to-bn")
    assert papers.row("safmn", 1, "SAFMN (Ours)", 3).config == SAFMNConfig(scale=3)
    for label, scale, message in (("SAFMN (Ours)", None, "scales 2, 3, 4"), ("CARN", 2, "no row 'CARN' at scale 2")):
        with pytest.raises(InputError, match=message):
            papers.row("safmn", 1, label, scale)


def test_unknown_names_are_refused_with_what_there_is() -> None:
    for call in (papers.table, papers.labels, papers.rows):
        with pytest.raises(InputError, match="unknown paper 'edsr'; choose one of: safmn"):
            call("edsr", 1)
        for number in (0, 7, "3b", ""):
            with pytest.raises(InputError, match="choose one of: 1, 2, 3, 4, 5"):
                call("safmn", number)
    for call in (papers.settings, papers.ledger, papers.differences):
        with pytest.raises(InputError, match="unknown paper"):
            call("edsr")
    with pytest.raises(InputError, match="0 cells"):
        papers.table("safmn", 5, counts=False).cell("LayerNorm", "flops")


def test_importing_papers_imports_no_torch() -> None:
    code = (
        "import sys; from srlib import papers; papers.tables(); papers.labels('safmn', 3); papers.settings('safmn');"
        "papers.slug('LN -> BN'); papers.table('safmn', 3, counts=False); papers.differences('safmn');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_slugs_are_plain_and_unique_within_a_table() -> None:
    assert papers.slug("CCM -> Channel MLP") == "ccm-to-channel-mlp"
    assert papers.slug("LN -> None, lr=1x10^-3 *") == "ln-to-none-lr-1x10-3"
    for paper, number in papers.tables():
        slugs = [papers.slug(label) for label in papers.labels(paper, number)]
        assert len(set(slugs)) == len(slugs) and all(s.isascii() and s == s.lower() and " " not in s for s in slugs)
    with pytest.raises(InputError, match="no letter or digit"):
        papers.slug(" -- ")


@pytest.mark.parametrize(
    ("printed", "ours", "expected"),
    [
        ("228", "227.5", "exact"),
        ("228", "228.5", "exact"),  # a tie: to the even digit
        ("229", "228.5", "exact"),  # the same tie: up
        ("227", "228.5", "differs"),
        ("228", "228.51", "within"),
        ("228", "229", "within"),
        ("228", "229.01", "differs"),
        ("13.56", "13.5549", "within"),
        ("13.55", "13.5549", "exact"),
        ("76.70", "76.70016", "exact"),
        ("76.70", "76.7099", "within"),
        ("76.7", "76.70016", "exact"),
        ("110.00", "109.87776", "differs"),
        ("58.64", "58.73472", "differs"),
        ("1120", "1119.6", "exact"),
    ],
)
def test_verdicts_go_by_the_printed_digits(printed: str, ours: str, expected: str) -> None:
    assert papers.verdict(printed, Decimal(ours)) == expected


def test_a_score_has_its_own_tolerance() -> None:
    tolerance = papers.TOLERANCE["psnr"]
    assert [papers.verdict("33.66", Decimal(ours), tolerance) for ours in ("33.664", "33.68", "33.681")] == [
        "exact", "within", "differs",
    ]  # fmt: skip
    assert papers.verdict("0.9299", Decimal("0.9305"), papers.TOLERANCE["ssim"]) == "within"


def test_csv_holds_every_printed_cell(filled: dict[int, papers.Table]) -> None:
    lines = {"1": 553, "2": 12, "3": 147, "4": 28, "5": 6}
    for number, t in filled.items():
        read = list(csv.DictReader(io.StringIO(t.csv())))
        columns = "row,variant,scale,dataset,metric,printed,ours,unit,verdict,note"
        assert t.csv().splitlines()[0] == columns and len(read) == len(t.cells) == lines[str(number)]
        for line, cell in zip(read, t.cells, strict=True):
            assert (line["row"], line["printed"], int(line["scale"])) == (cell.row, cell.printed, cell.scale)
            assert line["verdict"] in papers.VERDICTS and (line["ours"] == "") == (cell.verdict == "not-run")
            assert line["note"] or cell.verdict != "not-run", "a cell that isn't run says why"
            if cell.ours is not None:
                assert papers.verdict(line["printed"], Decimal(line["ours"])) == line["verdict"]
        keys = [(c.row, c.scale, c.dataset, c.metric) for c in t.cells]
        assert len(set(keys)) == len(keys)
        assert sum(t.counts().values()) == len(t.cells) and tuple(t.counts()) == papers.VERDICTS
    assert filled[3].cell("Baseline", "flops").ours_text == "13.5549"
    assert filled[1].cell("SAFMN (Ours)", "params", 2).ours_text == "227.82"


def test_no_printed_psnr_of_safmn_has_a_number_of_ours(filled: dict[int, papers.Table]) -> None:
    scores = [c for t in filled.values() for c in t.cells if c.metric in ("psnr", "ssim")]
    assert scores and all(c.ours is None and c.verdict == "not-run" for c in scores)
    assert "500,000 steps" in filled[3].cell("Baseline", "psnr", 4, "Manga109").note
    assert filled[1].cell("CARN", "flops", 4).note == "peer, as printed"
    assert "RTX 3090" in filled[2].cell("SAFMN", "time").note and "RTX 3090" in filled[5].cells[0].note


def score(dataset: str, protocol: str, psnr: float, scale: int = 2) -> dict[str, object]:
    """A score record of bicubic interpolation, as ``srlib.evaluate`` makes it, without its images."""
    return {"dataset": dataset, "scale": scale, "protocol": {"name": protocol}, "psnr": psnr, "ssim": 0.9300}


def test_bicubic_scores_come_from_records(tmp_path: Path) -> None:
    evaluation = {"scores": [score("Set5", "matlab-luma", 99.0)], "bicubic": [score("Set14", "matlab-luma", 30.31)]}
    (tmp_path / "deep").mkdir()
    for name, record in {
        "deep/x2.json": evaluation,
        "bicubic-x2.json": score("Set5", "matlab-luma", 33.645),
        "bicubic-x2-ssiu.json": score("Urban100", "ssiu", 26.88),  # another protocol
        "safmn-x2.json": score("Manga109", "matlab-luma", 30.80),  # another method
        "list.json": [1, 2],
    }.items():
        (tmp_path / name).write_text(json.dumps(record))
    filled = papers.table("safmn", 1, counts=False, records=tmp_path)
    found = {c.dataset: c for c in filled.cells if (c.row, c.scale, c.metric) == ("Bicubic", 2, "psnr")}
    assert (found["Set5"].ours, found["Set5"].verdict, found["Set5"].note) == (33.645, "within", "protocol matlab-luma")
    assert (found["Set14"].ours, found["Set14"].verdict) == (30.31, "differs")
    assert found["Urban100"].ours is None and found["Manga109"].note == "needs Manga109 under SRLIB_DATA"
    assert filled.cell("Bicubic", "ssim", 3, "Set5").verdict == "not-run"
    assert papers.scoreboard(counts=False, records=tmp_path)["safmn", 1] == filled.counts()


def test_an_unreadable_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "bicubic-x3.json").write_text("{")
    with pytest.raises(InputError, match="bicubic-x3.json can't be read"):
        papers.table("safmn", 1, counts=False, records=tmp_path)


def test_a_score_out_of_line_is_explained_where_there_is_a_record(
    filled: dict[int, papers.Table], tmp_path: Path
) -> None:
    (tmp_path / "bicubic.json").write_text(json.dumps(score("Set14", "matlab-luma", 26.0, scale=4)))
    scored = papers.table("safmn", 1, records=tmp_path, counts=False)
    others = [t for number, t in filled.items() if number != 1]
    entries = [e for e in papers.ledger("safmn", [scored, *others]) if e.dataset]
    assert [(e.dataset, e.scale, e.metric, e.ours, e.verdict) for e in entries] == [
        ("Set14", 4, "ssim", "0.930000", "differs"),
    ]


def test_settings_say_what_is_not_stated() -> None:
    found = {line["key"]: line["value"] for line in papers.settings("safmn")}
    assert found["betas"] == "0.9,0.99" and found["loss_weight_l1"] == "not stated" and found["iterations"] == "500000"


def test_one_safm_layer_runs_every_operation_of_table_5() -> None:
    block, x = FMM(SAFMNConfig()).eval(), torch.randn(1, 36, 180, 320)
    with torch.inference_mode():
        times = complexity.operator_times(lambda: block.safm(block.norm1(x)) + x, warmup=1, repeats=1)
    assert tuple(safmn.TABLE5_OPERATORS) == papers.labels("safmn", 5)
    for label, operators in safmn.TABLE5_OPERATORS.items():
        assert sum(times[name].total for name in operators if name in times) > 0, label
