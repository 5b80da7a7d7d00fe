"""Printed tables: every count by hand, the logic of verdicts, and a ledger without gaps or dead entries."""

import csv
import io
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from decimal import Decimal
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from srlib import complexity, metrics, papers, runs
from srlib.data import Store, benchmark
from srlib.errors import InputError
from srlib.evaluate import luma_bicubic
from srlib.models import create
from srlib.models import ssiu as network_of_ssiu
from srlib.models.safmn import FMM, SAFMNConfig
from srlib.models.seemore import CONFIGS, SeemoReConfig
from srlib.models.ssiu import ESAM, MoEFS, SSIUConfig, SSReM
from srlib.papers import safmn, seemore, ssiu

ROWS = [(number, row) for number in (1, 3, 4) for row in papers.rows("safmn", number)]
NAMES = [f"{number}-{row.slug}-x{row.config.scale}" for number, row in ROWS]
SEEMORE = [
    (number, row) for paper, number in papers.tables() if paper == "seemore" for row in papers.rows(paper, number)
]
SEEMORE_NAMES = [f"{number}-{row.slug}-x{row.config.scale}" for number, row in SEEMORE]
SSIU = [(number, row) for number in (1, 2, 3, 4) for row in papers.rows("ssiu", number)]
SSIU_NAMES = [f"{number}-{row.slug}-x{row.config.scale}" for number, row in SSIU]
TINY = replace(CONFIGS["seemore-t"], scale=2)


@pytest.fixture(scope="module")
def every() -> tuple[papers.Table, ...]:
    """All tables, each network counted once."""
    return papers.all_tables()


@pytest.fixture(scope="module")
def filled(every: tuple[papers.Table, ...]) -> dict[int | str, papers.Table]:
    """SAFMN's tables."""
    return {t.number: t for t in every if t.paper == "safmn"}


@pytest.fixture(scope="module")
def filled_seemore(every: tuple[papers.Table, ...]) -> dict[int | str, papers.Table]:
    """SeemoRe's tables."""
    return {t.number: t for t in every if t.paper == "seemore"}


@pytest.fixture(scope="module")
def filled_ssiu(every: tuple[papers.Table, ...]) -> dict[int | str, papers.Table]:
    """SSIU's tables."""
    return {t.number: t for t in every if t.paper == "ssiu"}


def labels(paper: str, number: int | str) -> tuple[str, ...]:
    """The printed row labels of a table, each once, in the paper's order."""
    return tuple(dict.fromkeys(cell.row for cell in papers.table(paper, number, counts=False).cells))


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
    filled: dict[int | str, papers.Table], number: int, row: papers.Row
) -> None:
    for metric, ours in by_hand(row.config).items():
        cell = filled[number].cell(row.label, metric, row.config.scale)
        assert cell.ours == pytest.approx(float(ours / papers.SCALING[cell.unit]), rel=1e-12), metric


def test_every_count_is_exact_or_in_the_ledger(filled: dict[int | str, papers.Table]) -> None:
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
    filled: dict[int | str, papers.Table], monkeypatch: pytest.MonkeyPatch, row: str
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


def test_the_figures_that_the_ledger_names(filled: dict[int | str, papers.Table]) -> None:
    base = SAFMNConfig()
    pixels = 180 * 320
    assert by_hand(base)["flops"] == 13_542_474_240 + 12_441_600 and 24 * 9 * pixels == 12_441_600
    assert by_hand(replace(base, safm="none"))["acts"] == 948 * pixels == 54_604_800
    assert by_hand(replace(base, ccm="inverted_residual"))["acts"] == 76_700_160 + 8 * 72 * pixels == 109_877_760
    assert by_hand(replace(base, blocks=12))["params"] == by_hand(base)["params"] + 4 * 27_864 == 350_976
    assert by_hand(replace(base, norm="batch"))["flops"] - by_hand(base)["flops"] == 165_888_000
    one_by_one = by_hand(replace(base, ccm="channel_mlp"))["params"] + 8 * 72 * 10
    assert round(one_by_one / 1e3, 2) == 79.39


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fvcore scripts and traces
@pytest.mark.parametrize(
    ("config", "in_line", "in_table"),
    [
        (SAFMNConfig(), ("13.55G", "76.7M"), ("13.555G", "76.7M")),
        (SAFMNConfig(safm="none"), ("12.9G", "54.6M"), ("12.896G", "54.605M")),
        (SAFMNConfig(ccm="inverted_residual"), ("13.85G", "0.11G"), ("13.854G", "0.11G")),
        (SAFMNConfig(blocks=6), ("10.4G", "58.73M"), ("10.404G", "58.735M")),
        (SAFMNConfig(blocks=12), ("19.86G", "0.11G"), ("19.856G", "0.113G")),
    ],
)
def test_what_fvcore_shows_is_what_the_ledger_says(
    config: SAFMNConfig, in_line: tuple[str, str], in_table: tuple[str, str]
) -> None:
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, flop_count_str, flop_count_table

    network, image = create("safmn", 4, config), torch.zeros(1, 3, 180, 320)
    flops = FlopCountAnalysis(network, image).set_op_handle("aten::layer_norm", lambda inputs, outputs: Counter())
    flops, acts = flops.unsupported_ops_warnings(False), ActivationCountAnalysis(network, image)
    acts = acts.unsupported_ops_warnings(False)
    line, table = flop_count_str(flops, acts), flop_count_table(flops, activations=acts)
    assert f"#flops: {in_line[0]}, #acts: {in_line[1]}\n" in line
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[3:5]] == list(in_table)


def test_set14_s_printed_ssim_has_no_border(
    filled: dict[int | str, papers.Table], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(benchmark("Set14", data_root))
    printed = {
        (scale, metric): float(filled[1].cell("Bicubic", metric, scale, "Set14").printed)
        for scale in (2, 3, 4) for metric in ("psnr", "ssim")
    }  # fmt: skip
    usual = {scale: luma_bicubic(store, scale) for scale in (2, 3, 4)}
    monkeypatch.setitem(metrics.PROTOCOLS, "matlab", replace(metrics.protocol("matlab"), border_per_scale=0))
    whole = {scale: luma_bicubic(store, scale) for scale in (2, 3, 4)}
    assert all(abs(whole[scale].ssim - printed[scale, "ssim"]) < 0.0001 for scale in whole)
    assert 0.0008 < max(printed[scale, "ssim"] - usual[scale].ssim for scale in usual) < 0.00085
    assert all(abs(usual[scale].psnr - printed[scale, "psnr"]) < 0.01 for scale in usual)


def test_rows_are_the_printed_ones_in_order() -> None:
    for number in (3, 4):
        assert tuple(row.label for row in papers.rows("safmn", number)) == labels("safmn", number)
        assert papers.table("safmn", number, counts=False).configs == papers.rows("safmn", number)
    assert {row.label for row in papers.rows("safmn", 1)} <= set(labels("safmn", 1))
    assert papers.rows("safmn", 2) == papers.rows("safmn", 5) == ()
    assert {row.label: row.train for row in papers.rows("safmn", 3) if row.train} == {
        "LN -> None, lr=1x10^-3 *": {"lr": 1e-3},
        "LN -> None, lr=1x10^-4": {"lr": 1e-4},
    }


@pytest.mark.parametrize(("number", "row"), ROWS, ids=NAMES)
def test_every_row_builds_runs_and_learns(number: int, row: papers.Row) -> None:
    network = create("safmn", row.config.scale, replace(row.config, blocks=1))
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
    for call in (papers.table, papers.rows):
        with pytest.raises(InputError, match="unknown paper 'edsr'; choose one of: safmn, seemore"):
            call("edsr", 1)
        for number in (0, 7, "3b", ""):
            with pytest.raises(InputError, match="choose one of: 1, 2, 3, 4, 5"):
                call("safmn", number)
    with pytest.raises(InputError, match="no table 4; choose one of: 1, 2, 3a, 3b, 4a, 4b, 4c, 5a"):
        papers.table("seemore", 4)
    for call in (papers.paper_of, papers.protocol):
        with pytest.raises(InputError, match="'edsr' is of no paper; choose one of: safmn, seemore-t, seemore-b"):
            call("edsr")
    for call in (papers.settings, papers.ledger, papers.differences):
        with pytest.raises(InputError, match="unknown paper"):
            call("edsr")
    with pytest.raises(InputError, match="0 cells"):
        papers.table("safmn", 5, counts=False).cell("LayerNorm", "flops")


def test_importing_papers_imports_no_torch() -> None:
    code = (
        "import sys; from srlib import papers; papers.tables(); papers.settings('safmn');"
        "papers.slug('LN -> BN'); papers.table('safmn', 3, counts=False); papers.differences('safmn');"
        "papers.protocol('seemore-l');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_slugs_are_plain_and_unique_within_a_table() -> None:
    assert papers.slug("CCM -> Channel MLP") == "ccm-to-channel-mlp"
    assert papers.slug("LN -> None, lr=1x10^-3 *") == "ln-to-none-lr-1x10-3"
    for paper, number in papers.tables():
        names = {row.name for row in papers.rows(paper, number)} | set(labels(paper, number))
        slugs = [papers.slug(name) for name in names]
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


def test_csv_holds_every_printed_cell(every: tuple[papers.Table, ...], filled: dict[int | str, papers.Table]) -> None:
    lines = {"safmn": {1: 553, 2: 12, 3: 147, 4: 28, 5: 6}}
    lines["seemore"] = {
        1: 306, 2: 188, "3a": 14, "3b": 16, "4a": 16, "4b": 4, "4c": 12, "5a": 18, "5b": 6, 7: 16, 8: 94, 9: 39,
        10: 12, 11: 6, 12: 9, 13: 12, 14: 9, 15: 12,
    }  # fmt: skip
    lines["ssiu"] = {1: 524, 2: 18, 3: 36, 4: 24}
    lines["moeisr"] = {1: 160, 2: 276, 3: 288, 4: 60, 5: 12}
    assert [(paper, number) for paper in lines for number in lines[paper]] == papers.tables()
    for t in every:
        read = list(csv.DictReader(io.StringIO(t.csv())))
        columns = "row,variant,scale,dataset,metric,printed,ours,unit,verdict,note"
        assert t.csv().splitlines()[0] == columns and len(read) == len(t.cells) == lines[t.paper][t.number]
        for line, cell in zip(read, t.cells, strict=True):
            assert (line["row"], line["printed"], int(line["scale"])) == (cell.row, cell.printed, cell.scale)
            assert line["verdict"] in papers.VERDICTS and (line["ours"] == "") == (cell.verdict == "not-run")
            assert line["note"] or cell.verdict != "not-run", "a cell that isn't run says why"
            if cell.ours is not None:
                assert papers.verdict(line["printed"], Decimal(line["ours"])) == line["verdict"]
        keys = [(c.row, c.variant, c.scale, c.dataset, c.metric) for c in t.cells]
        assert len(set(keys)) == len(keys) == len({c.record for c in t.cells})
        assert all(c.record.startswith(f"{t.record}#") for c in t.cells)
        assert sum(t.counts().values()) == len(t.cells) and tuple(t.counts()) == papers.VERDICTS
    assert filled[3].cell("Baseline", "flops").ours_text == "13.5549"
    assert filled[1].cell("SAFMN (Ours)", "params", 2).ours_text == "227.82"
    assert filled[3].cell("Baseline", "flops").record == "safmn-table-3#baseline-group-baseline-x4-flops"


def test_no_printed_psnr_of_safmn_has_a_number_of_ours(filled: dict[int | str, papers.Table]) -> None:
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
    assert found["Urban100"].ours is None and found["Manga109"].note.startswith("needs a record of Manga109")
    assert filled.cell("Bicubic", "ssim", 3, "Set5").verdict == "not-run"


def evaluation(budget: str, config: SAFMNConfig, table: int | None, row: str | None, **train: object) -> str:
    """A made-up record of ``srlib evaluate --record R.json --out E.json``, of SAFMN."""
    content = {
        "run": "made-up",
        "model": "safmn",
        "scale": config.scale,
        "budget": budget,
        "config": {"network": asdict(config), "train": {"steps": 500_000, "lr": 1e-3} | train},
        "metrics": {"collapsed_at": None},
        "table": table,
        "row": row,
        "scores": [
            score("Manga109", "matlab", 99.0, config.scale),
            score("Manga109", "safmn", 30.42, config.scale) | {"ssim": 0.9071},
            score("Set5", "safmn", float("nan"), config.scale),
        ],
        "bicubic": [],
    }
    return json.dumps(content)


def ours_in(number: int | str, records: Path, paper: str = "safmn") -> dict[str, tuple[str, float | None, str, str]]:
    """Row and metric -> the cells that a record filled, of one data set."""
    cells = papers.table(paper, number, counts=False, records=records).cells
    return {
        f"{c.row}, {c.metric}": (c.dataset, c.ours, c.verdict, c.note)
        for c in cells if c.metric in ("psnr", "ssim") and c.ours is not None
    }  # fmt: skip


def rows_in(number: int | str, records: Path, paper: str = "safmn") -> set[str]:
    """The labels of the rows, with variants, of which a record filled cells."""
    cells = papers.table(paper, number, counts=False, records=records).cells
    return {f"{c.row} {c.variant}".strip() for c in cells if c.metric in ("psnr", "ssim") and c.ours is not None}


def test_a_run_at_the_paper_s_budget_fills_the_rows_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "main.json").write_text(evaluation("paper", SAFMNConfig(), None, None))
    note = "500,000 steps, protocol safmn"
    assert ours_in(1, tmp_path) == {
        "SAFMN (Ours), psnr": ("Manga109", 30.42, "within", note),
        "SAFMN (Ours), ssim": ("Manga109", 0.9071, "differs", note),
    }
    assert rows_in(3, tmp_path) == {"Baseline group=Baseline"} and rows_in(4, tmp_path) == {"#N = 8 N=8"}
    assert rows_in(1, tmp_path, "seemore") == set(), "a peer's row stays as printed"
    low = evaluation("paper", SAFMNConfig(norm="none"), 3, "LN -> None, lr=1x10^-4", lr=1e-4)
    (tmp_path / "main.json").write_text(low)
    (tmp_path / "six.json").write_text(evaluation("paper", SAFMNConfig(blocks=6), 4, "#N = 6"))
    assert {name.rpartition(", ")[0] for name in ours_in(3, tmp_path)} == {"LN -> None, lr=1x10^-4"}
    assert {name.rpartition(", ")[0] for name in ours_in(4, tmp_path)} == {"#N = 6"}
    collapsed = json.loads(low) | {"metrics": {"collapsed_at": 40}}
    (tmp_path / "main.json").write_text(json.dumps(collapsed))
    assert {note for *_, note in ours_in(3, tmp_path).values()} == {"collapsed at step 40, protocol safmn"}


@pytest.mark.parametrize(
    "record",
    [
        evaluation("smoke", SAFMNConfig(), None, None),
        evaluation("paper", SAFMNConfig(blocks=7), None, None),  # a network that no row is
        evaluation("paper", SAFMNConfig(), None, None, lr=1e-4),  # another learning rate than the paper's
        evaluation("paper", SAFMNConfig(norm="none"), None, None, lr=5e-4),  # and than that of any row
        evaluation("paper", SAFMNConfig(), None, None).replace('"config"', '"settings"'),
        evaluation("paper", SAFMNConfig(), None, None).replace('"scores"', '"marks"'),
        evaluation("paper", SAFMNConfig(), None, None).replace('"safmn"', '"ssiu"'),  # another model and protocol
        evaluation("paper", SAFMNConfig(), None, None).replace('"model": "safmn"', '"model": ["safmn"]'),
    ],
)
def test_any_other_run_fills_nothing(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    assert ours_in(1, tmp_path) == ours_in(3, tmp_path) == ours_in(4, tmp_path) == {}


def evaluation_seemore(model: str, config: SeemoReConfig, protocol: str, **train: object) -> str:
    """A made-up record of ``srlib evaluate --record R.json --out E.json``, of a SeemoRe at the paper's budget."""
    content = {
        "model": model,
        "budget": "paper",
        "config": {"network": asdict(config), "train": {"steps": 500_000, "fft_weight": 0.1} | train},
        "scores": [score("Urban100", protocol, 32.22, config.scale), score("Set5", "matlab", 38.06, config.scale)],
    }
    return json.dumps(content)


def test_one_run_of_seemore_fills_its_row_in_every_table(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(evaluation_seemore("seemore-t", TINY, "seemore"))
    found = {number: rows_in(number, tmp_path, "seemore") for paper, number in papers.tables() if paper == "seemore"}
    assert {number: rows for number, rows in found.items() if rows} == {
        1: {"SeemoRe-T (ours)"},
        "3b": {"SeemoRe-T"},
        "4a": {"SeemoRe-T RME=1;SME=1"},
        "4b": {"SeemoRe-T macro_expert_order=Rank-Spatial"},
        "4c": {"SeemoRe-T kernel=11"},
        "5a": {"SeemoRe-T growth=2^i;experts=3;ranks=2,4,8"},
        "5b": {"SeemoRe-T recursive_steps=2"},
        7: {"SeemoRe-T RME=1;SME=1"},
        9: {"k = 1 model=SeemoRe-T"},
        10: {"SEE (ours) model=SeemoRe-T"},
        11: {"SeemoRe-T residual=DConv output"},
        12: {"SeemoRe-T L1=1.0;FFT=0.1"},
        13: {"SeemoRe-T N=6;C=36"},
        14: {"SeemoRe-T growth=2^i;experts=3"},
    }
    table1 = papers.table("seemore", 1, counts=False, records=tmp_path)
    assert table1.cell("SeemoRe-T (ours)", "psnr", 2, "Urban100").note == "500,000 steps, protocol seemore"
    assert table1.cell("SeemoRe-T (ours)", "psnr", 2, "Set5").ours is None, "scored under another protocol"
    assert table1.cell("SeemoRe-T (ours)", "psnr", 3, "Urban100").ours is None


def test_a_row_of_seemore_is_told_by_its_training_and_its_protocol(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(evaluation_seemore("seemore-t", TINY, "seemore", fft_weight=0.2))
    assert rows_in(12, tmp_path, "seemore") == {"SeemoRe-T L1=1.0;FFT=0.2"} and rows_in(1, tmp_path, "seemore") == set()
    large = replace(CONFIGS["seemore-l"], scale=4)
    for protocol, found in (("seemore", set()), ("seemore-l", {"SeemoRe-L (ours)"})):
        (tmp_path / "run.json").write_text(evaluation_seemore("seemore-l", large, protocol))
        assert rows_in(2, tmp_path, "seemore") == found
    (tmp_path / "run.json").write_text(evaluation_seemore("seemore-b", TINY, "seemore"))
    assert rows_in(1, tmp_path, "seemore") == set(), "another model by name"


def test_real_world_training_and_images_fill_no_printed_row(tmp_path: Path) -> None:
    """Their scores are on other images, or of other training, than the tables'."""
    usual = json.loads(evaluation_seemore("seemore-t", TINY, "seemore"))
    without_fft = json.loads(evaluation_seemore("seemore-t", TINY, "seemore", fft_weight=0.0))
    tuned = without_fft | {"config": without_fft["config"] | {"start": "seemore-t-x2-500000-000000000000"}}
    degraded = json.loads(evaluation_seemore("seemore-t", TINY, "seemore", degradation="real-esrgan"))
    elsewhere = usual | {"scores": [one | {"lr_origin": "real-esrgan, seed 0"} for one in usual["scores"]]}
    for content, fills in ((usual, True), (without_fft, True), (tuned, False), (degraded, False), (elsewhere, False)):
        (tmp_path / "run.json").write_text(json.dumps(content))
        assert bool(rows_in(1, tmp_path, "seemore") or rows_in(12, tmp_path, "seemore")) == fills


def test_records_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("{}")
    for path in (tmp_path / "nowhere", tmp_path / "file.json"):
        with pytest.raises(InputError, match=f"{path.name} is not a folder"):
            papers.table("safmn", 1, counts=False, records=path)


def test_an_unreadable_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "bicubic-x3.json").write_text("{")
    with pytest.raises(InputError, match="bicubic-x3.json can't be read"):
        papers.table("safmn", 1, counts=False, records=tmp_path)


def test_a_score_out_of_line_is_explained_where_there_is_a_record(
    filled: dict[int | str, papers.Table], tmp_path: Path
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
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        times = complexity.operator_times(lambda: block.safm(block.norm1(x)) + x, warmup=1, repeats=1)
    found = safmn.table5_times(times)
    assert tuple(found) == labels("safmn", 5) and all(time > 0 for time in found.values())
    assert found["LayerNorm"] >= 1e6 * times["aten::native_layer_norm"].own > 1e6 * times["aten::layer_norm"].own
    assert sum(found.values()) <= 1e6 * sum(time.own for time in times.values()), "no time is counted twice"
    with pytest.raises(InputError, match="lacks LayerNorm, .*Addition; profile"):
        safmn.table5_times({})


def seemore_by_hand(c: SeemoReConfig) -> tuple[int, int, int]:
    """Parameters, the multiply-adds of the cheapest route and of the dearest, worked out on paper from Section 3."""
    pixels, width, out = {2: 360 * 640, 3: 240 * 427, 4: 180 * 320}[c.scale], c.channels, 3 * c.scale**2
    height, breadth = {2: (360, 640), 3: (240, 427), 4: (180, 320)}[c.scale]
    square = width * width
    ffn = 3 * square + 13 * width + 4 * width, (3 * square + 9 * width) * pixels
    least = most = 0
    if c.rme == "more":
        n, ranks = c.experts, sorted(c.ranks)
        more = 13 * square + 35 * width + 2 * n * width + sum((3 * width + 2) * rank for rank in ranks)
        more += 5 * width  # biases of the 3x3, 1x1 to 2C, 1x1 of the context and the last
        small = [(height // 4**t) * (breadth // 4**t) for t in range(1, c.recursion + 1)]
        context = 16 * width * sum(small) + (9 * width + square) * small[-1] + 4 * width * pixels
        macs = (12 * square + 7 * width) * pixels + context + n * width
        least, most = (3 * width * sum(some) * pixels for some in (ranks[: c.top_k], ranks[-c.top_k :]))
    else:
        more, macs = 10 * square + 2 * width, 10 * square * pixels
    params, macs = more + ffn[0], macs + ffn[1]
    if c.sme != "none":
        weights, biases = {
            "see": (3 * square + 2 * c.kernel * width, 5 * width),
            "plain": (square, width),
            "striped": (square + 2 * c.kernel * width, 3 * width),
            "fused_mb": (10 * width * (width + 16), 2 * width + 16),
            "conv2former": (3 * square + c.kernel**2 * width, 4 * width),
        }[c.sme]
        params, macs = params + weights + biases + ffn[0], macs + weights * pixels + ffn[1]
    params = c.groups * params + 28 * width + 9 * square + width + 2 * width + out * (9 * width + 1)
    macs = c.groups * macs + (27 * width + 9 * square + 9 * width * out) * pixels
    return params, macs + c.groups * least, macs + c.groups * most


@pytest.mark.parametrize(("number", "row"), SEEMORE, ids=SEEMORE_NAMES)
def test_every_count_of_seemore_is_the_one_worked_out_by_hand(
    filled_seemore: dict[int | str, papers.Table], number: int | str, row: papers.Row
) -> None:
    counts = {
        c.metric: c for c in filled_seemore[number].cells
        if c.metric in papers.STATIC and (c.row, c.scale) == (row.label, row.config.scale)
        and row.variant in ("", c.variant)
    }  # fmt: skip
    if row.model == "safmn":
        hand = by_hand(row.config)
        assert counts["params"].ours == hand["params"] / 1e3 and counts["macs"].ours == hand["flops"] / 1e9
        return
    params, least, most = seemore_by_hand(row.config)
    if "params" in counts:
        assert counts["params"].ours == pytest.approx(params / 1e3, rel=1e-12)
    if "macs" in counts:
        cell = counts["macs"]
        assert cell.ours is not None and least / 1e9 <= cell.ours * (1 + 1e-12) <= most / 1e9 * (1 + 1e-11)
        assert (f"{least / 1e9:.2f} to {most / 1e9:.2f} G over all routes" in cell.note) == (least < most)


def test_every_count_of_seemore_is_exact_or_in_the_ledger(
    every: tuple[papers.Table, ...], filled_seemore: dict[int | str, papers.Table]
) -> None:
    cells = [(t.number, c) for t in filled_seemore.values() for c in t.cells if c.metric in papers.STATIC]
    without = {(number, c.row) for number, c in cells if c.ours is None}
    assert all(c.note.endswith("peer, as printed") for _, c in cells if c.ours is None)
    assert not any("SeemoRe" in label for _, label in without) and {number for number, _ in without} == {1, 2, "3b", 8}
    unmet = [c for number, c in cells if c.verdict in ("within", "differs")]
    entries = [e for e in papers.ledger("seemore", every) if e.kind == "cell"]
    assert [filled_seemore[e.table].cell(e.row, e.metric, e.scale) in unmet for e in entries] == [True] * len(unmet)
    assert {(e.table, e.row, e.scale, e.metric, e.ours, e.verdict) for e in entries} == {
        (2, "SeemoRe-L (ours)", 2, "params", "953.31 K", "differs"),
        (13, "SeemoRe-L", 2, "params", "953.31 K", "differs"),
        (8, "SeemoRe-L (ours)", 3, "params", "959.80 K", "within"),
        (8, "SeemoRe-L (ours)", 3, "macs", "87.63 G", "within"),
        ("4c", "SeemoRe-T (kernel=7)", 2, "params", "218.38 K", "within"),
        ("5a", "SeemoRe-T (growth=i+2;experts=6;ranks=2,3,4,5,6,7)", 2, "params", "229.98 K", "within"),
        (7, "SeemoRe-T (RME=0;SME=1)", 2, "macs", "53.60 G", "within"),
        (10, "C2F", 2, "params", "241.27 K", "differs"),
        (10, "C2F", 2, "macs", "49.26 G", "differs"),
    }


def test_the_figures_that_seemore_s_ledger_names() -> None:
    def counts(config: SeemoReConfig) -> tuple[str, ...]:
        params, least, most = seemore_by_hand(config)
        return f"{params / 1e3:.2f}K", f"{least / 1e9:.2f}", f"{most / 1e9:.2f}"

    told = " ".join(entry.text + entry.evidence for entry in seemore.EXPLANATIONS)
    told += " ".join(entry.explanation + entry.evidence for entry in seemore.DIFFERENCES)
    wide, plain = replace(TINY, groups=5, channels=48), {"rme": "plain", "sme": "plain"}
    for config, expected in (
        (replace(TINY, **plain), ("156.86K", "35.16", "35.16")),
        (replace(TINY, sme="plain"), ("198.94K", "39.65", "40.55")),
        (replace(TINY, rme="plain"), ("178.03K", "39.84", "39.84")),
        (replace(wide, **plain), ("232.14K", "52.39", "52.39")),
        (replace(wide, sme="plain"), ("287.48K", "58.71", "59.70")),
        (replace(wide, sme="none"), ("237.08K", "47.59", "48.59")),
        (replace(wide, sme="none", experts=4), ("249.24K", "47.59", "49.91")),
        (replace(wide, rme="plain"), ("261.42K", "58.91", "58.91")),
        (replace(wide, rme="plain", sme="striped"), ("237.90K", "53.60", "53.60")),
        (replace(TINY, sme="fused_mb"), ("303.79K", "63.74", "64.63")),
        (replace(TINY, sme="conv2former"), ("241.27K", "49.26", "50.15")),
        (replace(TINY, sme="conv2former", kernel=5), ("220.54K", "44.48", "45.37")),
        (replace(TINY, sme="conv2former", kernel=7), ("225.72K", "45.67", "46.57")),
        (TINY, ("220.10K", "44.33", "45.22")),
        (replace(TINY, top_k=2), ("220.10K", "44.93", "45.82")),
        (replace(TINY, top_k=3), ("220.10K", "46.12", "46.12")),
        (replace(TINY, growth="2^(i+1)"), ("229.34K", "44.63", "46.42")),
        (replace(CONFIGS["seemore-l"], scale=2), ("953.31K", "195.53", "198.71")),
    ):
        assert counts(config) == expected, config
        if config.growth == "2^i":  # of the algorithm's ranks only the parameters are told, in full
            assert all(macs in told for macs in expected[1:]), expected
    large = [seemore_by_hand(replace(CONFIGS["seemore-l"], scale=scale))[0] for scale in (2, 3, 4)]
    assert large == [968_896 - 36 * 433, 959_803, 968_896] and large[0] - 48 * 28 - 48 * (48 * 9 + 1) == 931_180
    assert round((27 * 48 + 9 * 48 * 48) * 230_400 / 1e9, 2) == 5.08
    assert [round(3 * 48 * 16 * ranks * 240 * 427 / 1e9, 2) for ranks in (14, 2)] == [3.31, 0.47]


def test_no_setting_of_seemore_l_meets_both_printed_counts() -> None:
    large, met = replace(CONFIGS["seemore-l"], scale=2), []
    for growth in ("2^i", "2*i+2", "i+2", "2^(i+1)"):
        for experts in range(1, 9):
            for kernel in range(1, 16, 2):
                config = replace(large, growth=growth, experts=experts, kernel=kernel)
                params, least, most = seemore_by_hand(config)
                if 930_500 <= params < 932_000 and least < 198e9 and most >= 196.5e9:
                    met.append(config)
    assert met == []


class Route(nn.Module):
    """Gates that are open for the same experts, whatever the image."""

    def __init__(self, experts: int, chosen: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("gates", torch.tensor([[0.5 * (i in chosen) for i in range(experts)]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gates.expand(len(x), -1)


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, groups=2),
        replace(TINY, groups=2, top_k=2),
        replace(TINY, groups=2, channels=12, recursion=1, growth="i+2", experts=4),
    ],
    ids=["k=1", "k=2", "four experts"],
)
def test_the_count_of_a_route_is_what_a_network_computes(config: SeemoReConfig) -> None:
    size, network = (12, 20), create("seemore-t", 2, config).eval()
    dense = complexity.count(network, size)
    router = complexity.count(network, size, training=False).macs_by_operator["linear"]
    found = []
    for chosen in combinations(range(config.experts), config.top_k):
        for group in network.body:
            group.local_block.block.moe_layer.gate = Route(config.experts, chosen)
        ranks = config.groups * sum(config.ranks[i] for i in chosen)
        by_ranks = seemore.macs_by_ranks(config, size, dense.macs)
        pooling = config.groups * config.channels * size[0] * size[1]  # the routers that were taken out
        computed = complexity.count(network, size, training=False).macs + router + pooling
        assert computed == by_ranks[ranks]
        found.append(computed)
    assert by_ranks == seemore.macs_by_ranks(config, size) and set(found) <= set(by_ranks.values())
    assert seemore.route_macs(config, size) == (min(found), max(found))


@pytest.mark.parametrize(
    ("printed", "ranks", "which"),
    [("45E9", 28, "all ranks alike"), ("44.83E9", 32, "not all alike"), ("43E9", 12, "not all alike")],
)
def test_one_route_stands_for_all_where_it_rounds_to_print(printed: str, ranks: int, which: str) -> None:
    config, size = SeemoReConfig(scale=2), (360, 640)
    by_ranks = seemore.macs_by_ranks(config, size)
    ours, note = seemore.macs(config, size, by_ranks[12] + 3 * 36 * 360 * 640 * (6 * 14 - 12), Decimal(printed))
    assert ours == by_ranks[ranks] and note.endswith(f"here: ranks that add up to {ranks}, {which}")


def test_seemore_s_rows_are_printed_rows() -> None:
    for number, row in SEEMORE:
        cells = papers.table("seemore", number, counts=False).cells
        lines = {(c.row, c.scale, c.variant) for c in cells if c.row == row.label and c.scale == row.config.scale}
        assert len(lines) == 1 or row.variant, "a label that several lines have needs the variant"
        assert not row.variant or (row.label, row.config.scale, row.variant) in lines
    for number in ("4a", "4b", "4c", "5a", "5b", 7, 9, 10, 11, 12, 13, 14):
        cells = papers.table("seemore", number, counts=False).cells
        assert [row.label for row in papers.rows("seemore", number)] == [
            label for label, _ in dict.fromkeys((c.row, c.variant) for c in cells)
        ]
    assert papers.rows("seemore", "3a") == papers.rows("seemore", 15) == ()


@pytest.mark.parametrize(("number", "row"), SEEMORE, ids=SEEMORE_NAMES)
def test_every_row_of_seemore_builds_runs_and_learns(number: int | str, row: papers.Row) -> None:
    few = {"blocks": 1} if row.model == "safmn" else {"groups": 1}
    network = create(row.model, row.config.scale, replace(row.config, **few))
    out = network(torch.rand(2, 3, 11, 17))
    assert out.shape == (2, 3, 11 * row.config.scale, 17 * row.config.scale)
    out.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_row_of_seemore_is_found_by_name_slug_or_a_label_of_its_own() -> None:
    name = "SeemoRe-T (kernel=3)"
    assert papers.row("seemore", "4c", name) == papers.row("seemore", "4c", papers.slug(name))
    assert papers.row("seemore", "4c", name).config.kernel == 3
    assert papers.row("seemore", "9", "k = 2").config.top_k == 2
    with pytest.raises(InputError, match=r"several rows 'SeemoRe-T'; name one of: SeemoRe-T \(kernel=3\); SeemoRe-T"):
        papers.row("seemore", "4c", "SeemoRe-T")
    assert papers.row("seemore", 12, "SeemoRe-T (L1=1.0;FFT=0.2)").train == {"fft_weight": 0.2}
    cell = papers.table("seemore", "4c", counts=False).cell(name, "psnr", dataset="Urban100")
    assert cell.printed == "32.04" and cell.variant == "kernel=3"


def test_models_know_their_paper_and_protocol() -> None:
    models = {"safmn": "safmn", "seemore-t": "seemore", "seemore-l": "seemore", "ssiu": "ssiu"}
    assert {model: papers.paper_of(model) for model in models} == models
    for module in (safmn, seemore, ssiu):
        for model, protocol in module.PROTOCOLS.items():
            recipe = runs.recipe(model)
            assert papers.protocol(model) == protocol == recipe.protocol and protocol in metrics.PROTOCOLS
            assert all(getattr(recipe.train, key) == value for key, value in module.TRAIN.items())
    changed = {key for paper, number in papers.tables() for row in papers.rows(paper, number) for key in row.train}
    assert changed == set(safmn.TRAIN) | set(seemore.TRAIN) | set(ssiu.TRAIN)


def test_seemore_s_differences_and_settings() -> None:
    entries = papers.differences("seemore")
    assert {e.kind for e in entries} == {"print", "release", "choice"}
    assert all(e.row and e.printed and e.ours and e.explanation and e.evidence for e in entries)
    assert len({(e.kind, e.row) for e in entries}) == len(entries)
    found = {line["key"]: line["value"] for line in papers.settings("seemore")}
    assert found["loss_weight_fft"] == "0.1" and found["top_k"] == "1"


def test_why_seemore_s_cells_are_not_run(filled_seemore: dict[int | str, papers.Table]) -> None:
    assert "RTX 4090" in filled_seemore["3a"].cell("SeemoRe-T (ours)", "time").note
    assert filled_seemore["3a"].cell("DAT-Light", "time").note == "peer, as printed"
    assert "RealSRSet" in filled_seemore[15].cell("SeemoRe-T", "niqe", dataset="RealSRSet").note
    assert "500,000 steps" in filled_seemore["4b"].cells[0].note
    assert "srlib evaluate bicubic" in filled_seemore[8].cell("Bicubic", "psnr", 3, "Set5").note


def ssiu_by_hand(c: SSIUConfig, products: int = 2) -> tuple[int, int]:
    """Parameters, and multiply-adds of a pixel of the padded image, worked out on paper from Section III.

    ``products``: how many of the attention's two are counted.
    """
    width, square, out = c.channels, c.channels**2, c.scale
    upsampler = {2: (4, 4), 3: (9, 9), 4: (8, 20)}[c.scale]  # 1x1 convolutions to so many C: kept, computed a pixel
    msgm = 4 * square + 4 * width + 10 * width, 4 * square + 9 * width
    esam = 3 * square + 2 * 10 * width // 8, 3 * square + products * 100 * width
    if c.attention == "esam":
        esam = esam[0] + 10 * width, (esam[1] + 9 * width) // 4 + 4 * width
    moe = (4 * (square + width), 4 * square) if c.moe_fs else (0, 0)
    params = 28 * width + c.stages * (2 * width + 4 * msgm[0] + esam[0]) + moe[0]
    params += upsampler[0] * (square + width) + 3 * (9 * width + 1)
    macs = 27 * width + c.stages * (4 * msgm[1] + esam[1]) + moe[1]
    macs += upsampler[1] * square + (27 * width + 4 * 3) * out**2
    return params, macs


PADDED = {2: 640 * 368, 3: 432 * 240, 4: 320 * 192}
UNPADDED = {2: 640 * 360, 3: 427 * 240, 4: 320 * 180}


@pytest.mark.parametrize(("number", "row"), SSIU, ids=SSIU_NAMES)
def test_every_count_of_ssiu_is_the_one_worked_out_by_hand(
    filled_ssiu: dict[int | str, papers.Table], number: int | str, row: papers.Row
) -> None:
    counts = {
        c.metric: c for c in filled_ssiu[number].cells
        if c.metric in papers.STATIC and (c.row, c.scale) == (row.label, row.config.scale)
        and row.variant in ("", c.variant)
    }  # fmt: skip
    if row.model == "safmn":
        hand = by_hand(row.config)
        assert counts["params"].ours == hand["params"] / 1e3 and counts["flops"].ours == hand["flops"] / 1e9
        return
    assert set(counts) == (set() if number == 2 else {"params", "flops"})
    if counts:
        params, macs = ssiu_by_hand(row.config)
        scale = row.config.scale
        assert counts["params"].ours == params / 1e3
        assert counts["flops"].ours == pytest.approx(macs * PADDED[scale] / 1e9, rel=1e-12)
        note = f"padded to 16; {macs * UNPADDED[scale] / 1e9:.2f} G on the image's own pixels"
        assert counts["flops"].note.endswith(note)


def test_every_count_of_ssiu_is_exact_or_in_the_ledger(
    every: tuple[papers.Table, ...], filled_ssiu: dict[int | str, papers.Table]
) -> None:
    cells = [(t.number, c) for t in filled_ssiu.values() for c in t.cells if c.metric in papers.STATIC]
    without = [(number, c) for number, c in cells if c.ours is None]
    assert {number for number, _ in without} == {1} and {c.note for _, c in without} == {"peer, as printed"}
    assert not {"Ours", "SAFMN"} & {c.row for _, c in without}
    unmet = {(number, c.row, c.variant, c.scale, c.metric) for number, c in cells if c.verdict in ("within", "differs")}
    entries = [e for e in papers.ledger("ssiu", every) if e.kind == "cell"]
    found = [(e.table, filled_ssiu[e.table].cell(e.row, e.metric, e.scale)) for e in entries]
    assert [(number, c.row, c.variant, c.scale, c.metric) in unmet for number, c in found] == [True] * len(unmet)
    assert {(e.table, e.row, e.scale, e.metric, e.printed, e.ours, e.verdict) for e in entries} == {
        (1, "Ours", 2, "flops", "164 G", "167.71 G", "differs"),
        (1, "Ours", 3, "flops", "75 G", "76.85 G", "differs"),
        (3, "SSIU (ESAM=1;SAM=0;MoE-FS=0)", 4, "flops", "43 G", "48.05 G", "differs"),
        (3, "SSIU (ESAM=0;SAM=1;MoE-FS=1)", 4, "flops", "54 G", "59.24 G", "differs"),
    }
    assert all(e.explanation and e.evidence for e in entries)


def test_the_figures_that_ssiu_s_ledger_names() -> None:
    told = " ".join(entry.text + " " + entry.evidence for entry in ssiu.EXPLANATIONS)
    told += " ".join(f"{entry.printed} {entry.ours} {entry.explanation} {entry.evidence}" for entry in ssiu.DIFFERENCES)
    base = SSIUConfig()

    def figure(config: SSIUConfig, products: int = 2, pixels: dict[int, int] = PADDED, less: int = 0) -> str:
        figure = f"{(ssiu_by_hand(config, products)[1] - less) * pixels[config.scale] / 1e9:.2f}"
        assert figure in told
        return figure

    scales = [replace(base, scale=scale) for scale in (2, 3, 4)]
    assert [ssiu_by_hand(config)[1] for config in scales] == [712_064, 741_244, 798_480]
    assert [figure(config) for config in scales] == ["167.71", "76.85", "49.06"]
    assert [figure(config, pixels=UNPADDED) for config in scales] == ["164.06", "75.96", "45.99"]
    assert [figure(config, products=1) for config in scales] == ["164.31", "75.36", "48.17"]
    assert [figure(config, products=0) for config in scales] == ["160.92", "73.87", "47.29"]
    dense, without = replace(base, attention="sam"), replace(base, moe_fs=False)
    assert (figure(dense), figure(dense, pixels=UNPADDED)) == ("59.24", "55.54")
    projected = -9 * 3 * 64 * 64 * 3 // 4 + 9 * 9 * 64 // 4  # at full size rather than a quarter; no 3x3 convolution
    assert (figure(base, less=projected), figure(base, less=projected + 9 * 4 * 64)) == ("54.08", "53.93")
    assert round(4 * 64 * 64 * PADDED[4] / 1e9, 2) == 1.01 and "1.01 of 49.06" in told
    params = [ssiu_by_hand(config)[0] for config in (base, without, dense)]
    assert params == [794_467, 794_467 - 16_640, 794_467 - 9 * 640] and "16,640" in told and "9 x 640" in told
    assert (2 * (64 * 256 + 256), 64 * 1024 + 1024, 64 * 9 * 64 + 64) == (33_280, 66_560, 36_928)
    ours = ssiu_by_hand(base)[1] / ssiu_by_hand(dense)[1]
    assert [round(100 * part, 1) for part in (5 / 49, 5 / 54, 1 - ours)] == [10.2, 9.3, 17.2]
    assert runs.recipe("ssiu").train.steps == 290 * 40 * 3450 // 40 == 1_000_500 and "1,000,500" in told


def test_no_one_way_of_counting_ssiu_gives_all_three_printed_figures() -> None:
    printed = {2: 164, 3: 75, 4: 49}
    for products in (0, 1, 2):
        for pixels in (PADDED, UNPADDED):
            counts = {s: ssiu_by_hand(SSIUConfig(s), products)[1] * pixels[s] / 1e9 for s in printed}
            for whole in (round, math.floor, math.ceil):
                assert {scale: whole(macs) for scale, macs in counts.items()} != printed


def test_what_ssiu_s_ledger_says_of_printed_numbers() -> None:
    table1, table2 = (papers.table("ssiu", number, counts=False) for number in (1, 2))

    def printed(row: str, scale: int, dataset: str, metric: str = "psnr") -> Decimal:
        return Decimal(table1.cell(row, metric, scale, dataset).printed)

    peers = ("LBNet", "CRAFT", "ATD-light")
    gains = {s: [printed("Ours", s, "Manga109") - printed(row, s, "Manga109") for row in peers] for s in (2, 4)}
    assert gains == {
        2: [Decimal("0.76"), Decimal("0.25"), Decimal("0.12")],
        4: [Decimal("0.84"), Decimal("0.42"), Decimal("0.12")],
    }

    def lead(scale: int, dataset: str, metric: str = "psnr") -> str:
        cells = [c for c in table1.cells if (c.scale, c.dataset, c.metric) == (scale, dataset, metric)]
        best = max(Decimal(c.printed) for c in cells if c.row != "Ours")
        return str(printed("Ours", scale, dataset, metric) - best)

    assert [lead(scale, "Set5", "ssim") for scale in (2, 3, 4)] == ["0.0015", "0.0019", "0.0033"]
    assert [lead(scale, "Set5") for scale in (2, 3, 4)] == ["0.02", "0.02", "0.01"]
    assert [lead(4, dataset) for dataset in ("Set5", "Set14", "BSD100")] == ["0.01"] * 3
    names = {"HiT-SRT": "HiT-SRF", "SSIU(Ours)": "Ours"}
    for cell in table2.cells:
        if cell.metric == "psnr":
            assert Decimal(cell.printed) == printed(names.get(cell.row, cell.row), 4, "BSD100")
    memory = {c.row: c.printed for c in table2.cells if c.metric == "gpu_memory"}
    assert memory["ATD-light"] == table1.cell("ATD-light", "params", 2).printed == "753"
    assert sorted(map(int, memory.values()))[:3] == [224, 753, 1586] and max(map(int, memory.values())) == 4181
    again = papers.table("ssiu", 3, counts=False), papers.table("ssiu", 4, counts=False)
    assert again[0].cell("SSIU (ESAM=1;SAM=0;MoE-FS=0)", "ssim", 4, "Set14").printed == "0.7818"
    assert again[1].cell("L1", "ssim", 4, "Set14").printed == "0.7928"
    for other, row in zip(again, ("SSIU (ESAM=1;SAM=0;MoE-FS=1)", "L1 + lambda Lf"), strict=True):
        for dataset in ("Set5", "Set14", "BSD100", "Urban100", "Manga109"):
            for metric in ("psnr", "ssim"):
                assert Decimal(other.cell(row, metric, 4, dataset).printed) == printed("Ours", 4, dataset, metric)


def test_rows_that_several_papers_print() -> None:
    names = {"EDSR-baseline": "EDSR-B", "ECBSR-M16C64": "ECBSR-M", "SAFMN (Ours)": "SAFMN"}
    names["SRFormer-Light"] = "SRFormer"

    def printed(paper: str, *numbers: int) -> dict[tuple[object, ...], str]:
        cells = [c for number in numbers for c in papers.table(paper, number, counts=False).cells]
        return {
            (names.get(c.row, c.row), c.scale, c.dataset, c.metric.replace("macs", "flops")): c.printed for c in cells
        }

    ours = printed("ssiu", 1)
    common = {paper: (theirs, ours.keys() & theirs.keys()) for paper, theirs in (
        ("safmn", printed("safmn", 1)), ("seemore", printed("seemore", 1, 2, 8)),
    )}  # fmt: skip
    differ = {
        paper: {key: (ours[key], theirs[key]) for key in keys if Decimal(ours[key]) != Decimal(theirs[key])}
        for paper, (theirs, keys) in common.items()
    }
    assert {paper: len(keys) for paper, (_, keys) in common.items()} == {"safmn": 266, "seemore": 144}
    assert differ["safmn"] == {} and differ["seemore"] == {
        ("ShuffleMixer", 3, "", "flops"): ("43", "42"),
        ("IMDN", 4, "Manga109", "psnr"): ("30.45", "30.46"),
    }


def with_the_input_itself(self: SSReM, a: Tensor, f: Tensor) -> Tensor:
    """Equation 12 to the letter: the stage's input, not its layer norm, is added."""
    normed = self.norm(a)
    b = self.s2(normed)
    u = a + self.s1(normed) + f
    v = self.s3(u) + u
    a = self.s4(v - b) + b
    return self.ffn(a) + a


def with_the_convolutions_outputs(self: MoEFS, *outputs: Tensor) -> Tensor:
    """The selector, with the weighted sum over what the gates are made of."""
    made = torch.stack([conv(x) for conv, x in zip((self.fc_a, self.fc_b, self.fc_c), outputs, strict=True)])
    s = (made * made.softmax(0)).sum(0)
    return s + self.fuse(s)


def zeros_for_reflection(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
            module.register_forward_hook(lambda *_: None)  # a watched network is the plain one, which pads by this mode


def no_embedding(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, ESAM):
            module.rel_h.data.zero_()
            module.rel_w.data.zero_()


def attention_to_repeated_pixels(self: ESAM, x: Tensor) -> Tensor:
    """The blocks' attention, written out, with the image's outermost pixels repeated beyond its border."""
    batch, channels, height, width = x.shape
    q, k, v = self.qkv_conv(x).chunk(3, dim=1)
    around = torch.cat([self.rel_h.expand(-1, -1, 10, -1), self.rel_w.expand(-1, 10, -1, -1)], -1)  # (1, 10, 10, 16)
    out = torch.empty_like(x)
    k, v = (F.pad(t, (1, 1, 1, 1), mode="replicate").unflatten(1, (4, -1)) for t in (k, v))
    for i, j in product(range(0, height, 8), range(0, width, 8)):
        queries = q[..., i : i + 8, j : j + 8].unflatten(1, (4, -1)).flatten(3).mT  # (B, 4, 64, 16)
        keys, values = (t[..., i : i + 10, j : j + 10].permute(0, 1, 3, 4, 2) for t in (k, v))
        weights = (queries @ (keys + around).flatten(2, 3).mT / queries.shape[-1] ** 0.5).softmax(-1)
        block = (weights @ values.flatten(2, 3)).mT.reshape(batch, channels, 8, 8)
        out[..., i : i + 8, j : j + 8] = block
    return out


def aligned(value: bool) -> Callable[..., Tensor]:
    """Bilinear enlargement whose corners are aligned or not, whatever is asked for."""
    usual = F.interpolate
    return lambda x, scale_factor, mode, align_corners: usual(
        x, scale_factor=scale_factor, mode=mode, align_corners=value
    )


def missed_by(golden: Path, change: Callable[[nn.Module], None] | None = None, **config: object) -> float:
    """How far a network with the released weights is from the released output, at most, over all values."""
    tensors = load_file(golden / "ssiu_x4.safetensors")
    network = create("ssiu", 4, replace(SSIUConfig(), **config)).eval()
    network.load_state_dict({k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")})
    if change:
        change(network)
    with torch.inference_mode():
        return (network(tensors["input"]) - tensors["output"]).abs().max().item()


def test_what_the_released_output_tells_apart(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distances that the ledger gives for what the release doesn't do."""
    assert missed_by(golden) < 1e-5
    assert missed_by(golden, s3b="v+b") == pytest.approx(0.002, rel=0.25)
    assert missed_by(golden, zeros_for_reflection) == pytest.approx(0.07, rel=0.25)
    assert missed_by(golden, no_embedding) == pytest.approx(0.0002, rel=0.25)
    for owner, name, other, distance in (
        (SSReM, "forward", with_the_input_itself, 0.009),
        (MoEFS, "forward", with_the_convolutions_outputs, 0.03),
        (ESAM, "attend", attention_to_repeated_pixels, 0.0008),
        (network_of_ssiu, "padded", lambda x: F.pad(x, (0, -x.shape[-1] % 16, 0, -x.shape[-2] % 16)), 0.4),
        (network_of_ssiu.F, "interpolate", aligned(True), 0.2),
        (network_of_ssiu.F, "interpolate", aligned(False), 0.00005),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            assert missed_by(golden) == pytest.approx(distance, rel=0.25), (name, distance)


def test_ssiu_s_rows_are_printed_rows() -> None:
    for number, row in SSIU:
        cells = papers.table("ssiu", number, counts=False).cells
        lines = {(c.row, c.scale, c.variant) for c in cells if c.row == row.label and c.scale == row.config.scale}
        assert len(lines) == 1 or row.variant, "a label that several lines have needs the variant"
        assert not row.variant or (row.label, row.config.scale, row.variant) in lines
    for number in (3, 4):
        cells = papers.table("ssiu", number, counts=False).cells
        assert [(row.label, row.variant) for row in papers.rows("ssiu", number)] == list(
            dict.fromkeys((c.row, c.variant) for c in cells)
        )
    assert papers.row("ssiu", "3", "ssiu-esam-0-sam-1-moe-fs-1").config.attention == "sam"
    assert {row.label: row.train for row in papers.rows("ssiu", 4)} == {
        "L1": {"fft_weight": 0.0},
        "L1 + lambda Lf": {"fft_weight": 0.01},
    }


@pytest.mark.parametrize(("number", "row"), SSIU, ids=SSIU_NAMES)
def test_every_row_of_ssiu_builds_runs_and_learns(number: int | str, row: papers.Row) -> None:
    few = {"blocks": 1} if row.model == "safmn" else {"stages": 3, "channels": 8}
    network = create(row.model, row.config.scale, replace(row.config, **few))
    for batch in (1, 2):
        out = network(torch.rand(batch, 3, 11, 17))
        assert out.shape == (batch, 3, 11 * row.config.scale, 17 * row.config.scale)
    out.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def evaluation_ssiu(config: SSIUConfig, psnr: float, ssim: float, protocol: str = "ssiu", **train: object) -> str:
    """A made-up record of ``srlib evaluate --record R.json --out E.json``, of SSIU at the paper's budget."""
    content = {
        "model": "ssiu",
        "budget": "paper",
        "config": {"network": asdict(config), "train": {"steps": 1_000_500, "fft_weight": 0.01} | train},
        "scores": [score("BSD100", protocol, psnr, config.scale) | {"ssim": ssim}],
    }
    return json.dumps(content)


def test_one_run_of_ssiu_fills_its_row_in_every_table(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(evaluation_ssiu(SSIUConfig(), 27.81, 0.7471))
    variant = "ESAM=1;SAM=0;MoE-FS=1"
    assert {number: rows_in(number, tmp_path, "ssiu") for number in (1, 2, 3, 4)} == {
        1: {"Ours training_dataset=DF2K"}, 2: {"SSIU(Ours)"}, 3: {f"SSIU {variant}"}, 4: {"L1 + lambda Lf"},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(evaluation_ssiu(SSIUConfig(), 27.81, 0.7471, fft_weight=0.0))
    assert [rows_in(number, tmp_path, "ssiu") for number in (1, 2, 3, 4)] == [set(), set(), set(), {"L1"}]
    (tmp_path / "run.json").write_text(evaluation_ssiu(SSIUConfig(s3b="v+b"), 27.81, 0.7471))
    assert not any(rows_in(number, tmp_path, "ssiu") for number in (1, 2, 3, 4)), "a network that no row is"
    (tmp_path / "run.json").write_text(evaluation_ssiu(SSIUConfig(), 27.81, 0.7471, "safmn"))
    assert not any(rows_in(number, tmp_path, "ssiu") for number in (1, 2, 3, 4)), "another protocol"


@pytest.mark.parametrize(
    ("psnr", "ssim", "shown", "verdicts"),
    [
        (27.8151, 0.74715, ("27.82", "0.7472"), ("exact", "exact")),
        (27.8101, 0.74711, ("27.82", "0.7472"), ("exact", "exact")),  # to the nearest they would be 27.81, 0.7471
        (27.8201, 0.74721, ("27.83", "0.7473"), ("within", "within")),  # to the nearest they would be exact
        (27.8351, 0.74771, ("27.84", "0.7478"), ("within", "within")),
        (27.8401, 0.74781, ("27.85", "0.7479"), ("differs", "differs")),  # 27.84 and 0.7478 would be within
    ],
)
def test_means_are_compared_as_ssiu_s_release_prints_them(
    tmp_path: Path, psnr: float, ssim: float, shown: tuple[str, str], verdicts: tuple[str, str]
) -> None:
    (tmp_path / "run.json").write_text(evaluation_ssiu(SSIUConfig(), psnr, ssim))
    table = papers.table("ssiu", 1, counts=False, records=tmp_path)
    cells = [table.cell("Ours", metric, 4, "BSD100") for metric in ("psnr", "ssim")]
    assert [c.printed for c in cells] == ["27.82", "0.7472"] and [c.ours for c in cells] == [psnr, ssim]
    assert tuple(c.verdict for c in cells) == verdicts
    for cell, text in zip(cells, shown, strict=True):
        assert cell.note == f"1,000,500 steps, protocol ssiu; rounded up to {text}, as its release prints it"


def test_ssiu_s_differences_and_settings() -> None:
    entries = papers.differences("ssiu")
    assert {e.kind for e in entries} == {"print", "release", "choice"}
    assert all(e.row and e.printed and e.ours and e.explanation and e.evidence for e in entries)
    assert len({(e.kind, e.row) for e in entries}) == len(entries)
    found = {line["key"]: line["value"] for line in papers.settings("ssiu")}
    assert found["loss_weight_fft"] == "0.01" and found["optimizer"] == "Adam" and found["iterations"] == "not stated"


def test_why_ssiu_s_cells_are_not_run(filled_ssiu: dict[int | str, papers.Table]) -> None:
    assert "RTX 4090" in filled_ssiu[2].cell("SSIU(Ours)", "time").note
    assert filled_ssiu[2].cell("ATD-light", "time").note == "peer, as printed"
    assert filled_ssiu[2].cell("HiT-SRT", "psnr", 4, "BSD100").note.endswith("; peer, as printed")
    assert filled_ssiu[1].cell("SAFMN", "psnr", 4, "Set5").note == "peer, as printed"
    assert "1,000,500 steps" in filled_ssiu[4].cell("L1", "ssim", 4, "Set5").note
