"""Printed tables: every count by hand, the logic of verdicts, and a ledger without gaps or dead entries."""

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from srlib import complexity, metrics, papers
from srlib.data import Store, benchmark
from srlib.errors import InputError
from srlib.evaluate import luma_bicubic
from srlib.models import create
from srlib.models.safmn import FMM, SAFMNConfig
from srlib.papers import safmn

ROWS = [(number, row) for number in (1, 3, 4) for row in papers.rows("safmn", number)]
NAMES = [f"{number}-{row.slug}-x{row.config.scale}" for number, row in ROWS]


@pytest.fixture(scope="module")
def filled() -> dict[int, papers.Table]:
    """All tables, each network counted once."""
    return {t.number: t for t in papers.all_tables()}


def labels(number: int | str) -> tuple[str, ...]:
    """The printed row labels of a table, each once, in the paper's order."""
    return tuple(dict.fromkeys(cell.row for cell in papers.table("safmn", number, counts=False).cells))


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
    filled: dict[int, papers.Table], data_root: Path, monkeypatch: pytest.MonkeyPatch
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
        assert tuple(row.label for row in papers.rows("safmn", number)) == labels(number)
        assert papers.table("safmn", number, counts=False).configs == papers.rows("safmn", number)
    assert {row.label for row in papers.rows("safmn", 1)} <= set(labels(1))
    assert papers.rows("safmn", 2) == papers.rows("safmn", 5) == ()
    assert {row.label: row.lr for row in papers.rows("safmn", 3) if row.lr} == {
        "LN -> None, lr=1x10^-3 *": 1e-3,
        "LN -> None, lr=1x10^-4": 1e-4,
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
        "import sys; from srlib import papers; papers.tables(); papers.settings('safmn');"
        "papers.slug('LN -> BN'); papers.table('safmn', 3, counts=False); papers.differences('safmn');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_slugs_are_plain_and_unique_within_a_table() -> None:
    assert papers.slug("CCM -> Channel MLP") == "ccm-to-channel-mlp"
    assert papers.slug("LN -> None, lr=1x10^-3 *") == "ln-to-none-lr-1x10-3"
    for paper, number in papers.tables():
        assert paper == "safmn"
        slugs = [papers.slug(label) for label in labels(number)]
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
    assert found["Urban100"].ours is None and found["Manga109"].note.startswith("needs a record of Manga109")
    assert filled.cell("Bicubic", "ssim", 3, "Set5").verdict == "not-run"


def evaluation(budget: str, config: SAFMNConfig, table: int | None, row: str | None, **train: object) -> str:
    """A made-up record of ``srlib evaluate --record R.json --out E.json``."""
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


def ours_in(number: int, records: Path) -> dict[str, tuple[str, float | None, str, str]]:
    """Row -> the cells of Manga109 at x4 that a record filled."""
    cells = papers.table("safmn", number, counts=False, records=records).cells
    return {
        f"{c.row}, {c.metric}": (c.dataset, c.ours, c.verdict, c.note)
        for c in cells if c.metric in ("psnr", "ssim") and c.ours is not None
    }  # fmt: skip


def test_a_run_at_the_paper_s_budget_fills_its_row(tmp_path: Path) -> None:
    (tmp_path / "main.json").write_text(evaluation("paper", SAFMNConfig(), None, None))
    note = "500,000 steps, protocol safmn"
    assert ours_in(1, tmp_path) == {
        "SAFMN (Ours), psnr": ("Manga109", 30.42, "within", note),
        "SAFMN (Ours), ssim": ("Manga109", 0.9071, "differs", note),
    }
    assert ours_in(3, tmp_path) == ours_in(4, tmp_path) == {}
    low = evaluation("paper", SAFMNConfig(norm="none"), 3, "LN -> None, lr=1x10^-4", lr=1e-4)
    (tmp_path / "low.json").write_text(low)
    (tmp_path / "six.json").write_text(evaluation("paper", SAFMNConfig(blocks=6), 4, "#N = 6"))
    assert {name.rpartition(", ")[0] for name in ours_in(3, tmp_path)} == {"LN -> None, lr=1x10^-4"}
    assert {name.rpartition(", ")[0] for name in ours_in(4, tmp_path)} == {"#N = 6"}
    collapsed = json.loads(low) | {"metrics": {"collapsed_at": 40}}
    (tmp_path / "low.json").write_text(json.dumps(collapsed))
    assert {note for *_, note in ours_in(3, tmp_path).values()} == {"collapsed at step 40, protocol safmn"}


@pytest.mark.parametrize(
    "record",
    [
        evaluation("smoke", SAFMNConfig(), None, None),
        evaluation("paper", SAFMNConfig(blocks=6), None, None),  # another network
        evaluation("paper", SAFMNConfig(), 3, "LN -> BN"),
        evaluation("paper", SAFMNConfig(norm="none"), 3, "LN -> None, lr=1x10^-4"),  # another learning rate
        evaluation("paper", SAFMNConfig(), 3, "no such row"),
        evaluation("paper", SAFMNConfig(), None, None).replace('"config"', '"settings"'),
        evaluation("paper", SAFMNConfig(), None, None).replace('"safmn"', '"ssiu"'),  # another model and protocol
    ],
)
def test_any_other_run_fills_nothing(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    assert ours_in(1, tmp_path) == ours_in(3, tmp_path) == ours_in(4, tmp_path) == {}


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
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        times = complexity.operator_times(lambda: block.safm(block.norm1(x)) + x, warmup=1, repeats=1)
    found = safmn.table5_times(times)
    assert tuple(found) == labels(5) and all(time > 0 for time in found.values())
    assert found["LayerNorm"] >= 1e6 * times["aten::native_layer_norm"].own > 1e6 * times["aten::layer_norm"].own
    assert sum(found.values()) <= 1e6 * sum(time.own for time in times.values()), "no time is counted twice"
    with pytest.raises(InputError, match="lacks LayerNorm, .*Addition; profile"):
        safmn.table5_times({})
