"""MoEISR's printed tables: fixed counts by hand, bounds, what the mapper costs, records, and what the ledger says."""

import csv
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from srlib import papers
from srlib.errors import InputError
from srlib.models.encoders import ENCODERS
from srlib.models.moeisr import CONFIGS, MoEISRConfig, build, decoder_macs, mapper_macs
from srlib.papers import moeisr

ROWS = [(number, row) for number in (1, 2, 3, 4, 5) for row in papers.rows("moeisr", number)]
TINY = sorted({replace(row.config, encoder="edsr", hidden=8) for _, row in ROWS}, key=str)  # the decoders of all rows
# multiply-adds of one query, by width: of the first and last layer, and of one between them; an MLP reads 9 x 64
# features, two coordinates and two sides of a cell, or LTE's 256 numbers
LIIF = {256: (580 * 256 + 3 * 256, 65_536), 128: (580 * 128 + 3 * 128, 16_384)}
LTE = {256: (256 * 256 + 3 * 256, 65_536), 128: (256 * 128 + 3 * 128, 16_384)}
SET14 = Decimal(3_222_840) / 14  # the sum of width x height as distributed


@pytest.fixture(scope="module")
def filled() -> dict[int | str, papers.Table]:
    """All five tables, counted."""
    return {number: papers.table("moeisr", number) for paper, number in papers.tables() if paper == "moeisr"}


def flops(table: papers.Table) -> list[papers.Cell]:
    return [cell for cell in table.cells if cell.metric == "flops"]


def by_hand(decoder: str, hidden: int, depth: int) -> int:
    ends, between = {"liif": LIIF, "lte": LTE}[decoder][hidden]
    return ends + (depth - 2) * between


def set14(decoder: str, depth: int, scale: int) -> Decimal:
    """Table 3's T: four queries at each output pixel, Set14's images as LR images."""
    return 4 * scale**2 * SET14 * by_hand(decoder, 256, depth) / 10**12


def test_rows_are_the_printed_ones_in_order() -> None:
    peers = {"Bicubic", "RDN", "SwinIR"}
    for number in (1, 2, 3, 4, 5):
        cells = papers.table("moeisr", number, counts=False).cells
        printed = dict.fromkeys((c.row, c.variant.removesuffix(f";{moeisr.PERCENT}")) for c in cells)
        built = papers.rows("moeisr", number)
        assert [r.label for r in built] == [label for label, _ in printed if label not in peers]
        for row in built:
            assert row.scale is None and any(row.stands_for(*key, scale=4) for key in printed)
            assert not row.variant or (row.label, row.variant) in printed
    names = Counter(row.name for _, row in ROWS if _ == 3)
    assert set(names.values()) == {1}, "a misprinted label needs its variant"


def test_rows_are_the_networks_that_their_labels_say() -> None:
    for number, row in ROWS[:-4]:
        label = row.label.lower().replace(" ", "")
        if number == 4 and "layer" in label:
            assert row.config == replace(CONFIGS["liif-rdn"], depths=(int(label[5]),)) and row.model == "liif-rdn"
            continue
        encoder, _, rest = label.partition("-")
        if row.variant == "block=EDSR-LIIF":
            assert label == "rdn-moeisr(liif)-s"
            encoder = "edsr"
        name = rest.replace("moeisr(", "moeisr-").replace(")", "") + f"-{encoder}"
        assert row.model == name and row.config == CONFIGS[name]
    base = CONFIGS["moeisr-liif-b-rdn"]
    assert [row.config for row in papers.rows("moeisr", 5)] == [
        base, replace(base, temperature=3.0), replace(base, temperature=5.0), replace(base, mapper_layers=1),
    ]  # fmt: skip
    assert set(moeisr.PROTOCOLS) == set(CONFIGS)


def test_a_row_without_a_scale_is_found_at_every_scale() -> None:
    row = papers.row("moeisr", 3, "EDSR-LIIF")
    assert row.scale is None and papers.row("moeisr", 3, "edsr-liif", 30) == row
    with pytest.raises(InputError, match="several rows .*name one of: RDN-MoEISR.*block=EDSR-LIIF.*block=RDN-LIIF"):
        papers.row("moeisr", 3, moeisr.MISPRINTED)
    edsr = papers.row("moeisr", 3, "RDN-MoEISR(LIIF)-s (block=EDSR-LIIF)")
    assert edsr.model == "moeisr-liif-s-edsr"
    assert papers.row("safmn", 1, "SAFMN (Ours)", 3).scale == 3


@pytest.mark.parametrize("config", TINY, ids=str)
def test_every_row_builds_runs_and_learns(config: MoEISRConfig) -> None:
    torch.manual_seed(0)
    network = build(config)
    for batch in (1, 2):
        out = network(torch.rand(batch, 3, 7, 9), size=(17, 25))
        assert out.shape == (batch, 3, 17, 25)
    found = network(torch.rand(2, 3, 7, 9), coord=torch.rand(2, 50, 2) * 2 - 1, cell=torch.full((2, 2), 0.1))
    (found.rgb.mean() + (0 if found.gates is None else (found.gates[:, 0] ** 2).mean())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_fixed_flops_are_those_worked_out_by_hand(filled: dict[int | str, papers.Table]) -> None:
    found = 0
    for cell in flops(filled[3]):
        if "MoEISR" in cell.row:
            assert cell.ours is None and cell.verdict == "not-run"
        elif cell.unit == "%":
            assert (cell.printed, cell.ours, cell.verdict) == ("100", 100.0, "exact")
        else:
            decoder, depth = ("liif", 5) if "LIIF" in cell.row else ("lte", 4)
            ours = set14(decoder, depth, cell.scale)
            assert cell.ours == pytest.approx(float(ours), rel=1e-12)
            exact = ours.quantize(Decimal("0.01")) == Decimal(cell.printed)
            truncated = ours.quantize(Decimal("0.01"), ROUND_DOWN) == Decimal(cell.printed)
            assert cell.verdict == ("exact" if exact else "within") and (exact or truncated or cell.printed == "11.47")
            found += 1
    assert found == 6 * 8
    with (papers._DATA / "moeisr_urban100.csv").open() as file:
        sizes = [(int(line["width"]), int(line["height"])) for line in csv.DictReader(file)]
    for cell in flops(filled[4]):
        if "layer" in cell.row:
            s = cell.scale
            pixels = Decimal(sum((w // s * s) * (h // s * s) for w, h in sizes)) / 100
            ours = 4 * pixels * by_hand("liif", 256, int(cell.row[6])) / 10**9
            assert cell.ours == pytest.approx(float(ours), rel=1e-12)
            assert cell.verdict == ("exact" if s in (4, 8) else "differs")
            assert abs(ours / Decimal(cell.printed) - 1) < Decimal("0.002")
            if s in moeisr.CROPPED:
                below = Decimal(moeisr.CROPPED[s])
                assert (100 - 100 * ours / Decimal(cell.printed)).quantize(below) == below


def test_every_count_is_exact_or_in_the_ledger(filled: dict[int | str, papers.Table]) -> None:
    unmet = {
        (number, f"{c.row} ({c.variant})" if number == 3 else c.row, c.scale)
        for number, table in filled.items() for c in flops(table) if c.verdict in ("within", "differs")
    }  # fmt: skip
    entries = [e for e in papers.ledger("moeisr", filled.values()) if e.kind == "cell"]
    explained = [(e.table, e.row, e.scale) for e in entries]
    assert len(explained) == len(unmet) == 1 + 14 + 12 and set(explained) == unmet
    assert all(e.explanation and e.evidence for e in entries)


def test_printed_flops_of_moeisr_lie_between_the_bounds(filled: dict[int | str, papers.Table]) -> None:
    """But for one cell, which lies above both as printed, and at the upper one before it was rounded."""
    beyond = []
    for number in (3, 4):
        for row in papers.rows("moeisr", number):
            if len(row.config.depths) == 1:
                continue
            for cell in flops(filled[number]):
                if not row.stands_for(cell.row, cell.variant, cell.scale) or cell.unit == "%":
                    continue
                lr = moeisr.pixels(cell.dataset, cell.scale)
                unit = Fraction(papers.SCALING[cell.unit])
                least, most = (macs / unit for macs in moeisr.bounds(row.config, lr, cell.scale))
                printed = Fraction(Decimal(cell.printed))
                assert least < printed < most + Fraction(5, 1000)
                if printed > most:
                    beyond.append((cell.row, cell.scale))
                    assert "printed: above both" in cell.note
                else:
                    assert f"printed: {float(100 * (printed - least) / (most - least)):.0f} % of the way" in cell.note
    assert beyond == [("SwinIR-MoEISR(LTE)-s", 2)]
    note = filled[3].cell("EDSR-MoEISR(LIIF)-b (block=EDSR-LIIF)", "flops", 2, "Set14").note
    assert note.startswith("depends on the trained mapper: 0.557 T with the shallowest expert everywhere, 1.281 with")


def test_counts_by_the_paper_s_rule_and_as_executed(filled: dict[int | str, papers.Table]) -> None:
    config, lr = CONFIGS["liif-rdn"], Fraction(1000)
    assert moeisr.bounds(config, lr, 2) == (4 * 4000 * 345_856,) * 2
    assert moeisr.executed(config, lr, 2) == (1000 * 576 * 256 + 16_000 * (345_856 - 578 * 256),) * 2
    config = CONFIGS["moeisr-lte-s-edsr"]
    least, most = moeisr.bounds(config, lr, 3)
    assert least == 1000 * mapper_macs(config) + 36_000 * by_hand("lte", 128, 2)
    assert most == 1000 * mapper_macs(config) + 36_000 * by_hand("lte", 128, 4)
    assert [decoder_macs(CONFIGS[name]) for name in ("moeisr-liif-s-edsr", "moeisr-lte-b-edsr")] == [
        tuple(by_hand("liif", 128, depth) for depth in (2, 3, 4, 5)), tuple(by_hand("lte", 256, d) for d in (2, 3, 4)),
    ]  # fmt: skip
    assert "this library executes 0.763 T" in filled[3].cell("EDSR-LIIF (block=EDSR-LIIF)", "flops", 2, "Set14").note


def test_pixels_of_set14_and_urban100() -> None:
    assert moeisr.pixels("Set14", 2) == moeisr.pixels("Set14", 30) == Fraction(3_222_840, 14)
    assert round(SET14) == 230_203 and moeisr.pixels("Urban100", 4) * 16 == Fraction("774313.6")


def test_importing_moeisr_s_tables_imports_no_torch() -> None:
    code = (
        "import sys; from srlib import papers; from srlib.papers import moeisr;"
        "[papers.table('moeisr', n, counts=False) for n in range(1, 6)]; papers.differences('moeisr');"
        "papers.protocol('moeisr-lte-s-swinir', 'DIV2K_val'); moeisr.mapper_costs(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


# --- what the mapper costs --------------------------------------------------------------------------------------------


def mapper(width: int) -> dict[str, int]:
    """Multiply-adds of five 3x3 convolutions at an LR pixel, 64 channels in, four or three out."""
    return {
        decoder: 9 * (64 * width + 3 * width**2 + width * experts) for decoder, experts in (("LIIF", 4), ("LTE", 3))
    }


def test_mapper_costs_are_the_limits_of_what_one_expert_map_meets() -> None:
    costs = moeisr.mapper_costs()
    assert len({cost.network for cost in costs}) == 12
    printed = moeisr._by_scale()
    for cost in costs:
        kept = {s: limits for s, limits in printed[cost.network].items() if s not in cost.left_out}

        def met(m: float, kept: dict[int, tuple[Fraction, Fraction]] = kept) -> bool:
            lows, highs = zip(*(((low - m) / s**2, (high - m) / s**2) for s, (low, high) in kept.items()), strict=True)
            return max(lows) <= min(highs)

        inside = [cost.least + share * (cost.most - cost.least) for share in (0.001, 0.5, 0.999)]
        assert all(map(met, inside)) and not met(cost.most + 1) and (cost.least == 0 or not met(cost.least - 1))
    assert {cost.network: cost.left_out for cost in costs if len(cost.left_out) == 1} == {
        "RDN-MoEISR(LIIF)-b": (24,), "SwinIR-MoEISR(LIIF)-b": (30,), "SwinIR-MoEISR(LTE)-s": (18,),
    }  # fmt: skip
    assert [cost.network for cost in costs if not cost.left_out] == [
        "EDSR-MoEISR(LIIF)-s", "EDSR-MoEISR(LTE)-b", "EDSR-MoEISR(LTE)-s",
        "RDN-MoEISR(LIIF)-s", "RDN-MoEISR(LTE)-b", "RDN-MoEISR(LTE)-s",
    ]  # fmt: skip


def test_what_the_ledger_says_of_the_mapper_s_width() -> None:
    told = next(e for e in papers.differences("moeisr") if e.row == "Width of the mapper")
    of_edsr_and_rdn = [c for c in moeisr.mapper_costs() if "SwinIR" not in c.network and len(c.left_out) < 2]
    limits = {}
    for decoder in ("LIIF", "LTE"):
        ours = [c for c in of_edsr_and_rdn if decoder in c.network]
        limits[decoder] = f"{max(c.least for c in ours) / 1e3:.1f}K", f"{min(c.most for c in ours) / 1e3:.1f}K"
    assert limits == {"LIIF": ("28.1K", "31.0K"), "LTE": ("24.6K", "26.3K")}
    assert all(limit in " ".join(told.evidence.split()) for pair in limits.values() for limit in pair)
    assert mapper(24) == {"LIIF": 30_240, "LTE": 30_024}
    assert mapper(24)["LIIF"] == mapper_macs(CONFIGS["moeisr-liif-b-rdn"]) and "30,240" in told.evidence
    assert mapper(24)["LTE"] == mapper_macs(CONFIGS["moeisr-lte-s-edsr"]) and "30,024" in told.evidence

    def met(width: int) -> int:
        return sum(n for network, n in moeisr.cells_met(mapper(width)).items() if "SwinIR" not in network)

    counts = {width: met(width) for width in range(4, 65)}
    assert max(counts.values()) == 59 and [w for w, n in counts.items() if n == 59] == [22, 23, 24]
    assert "59 of these rows' 64" in told.evidence and "22 and 23" in told.evidence


def test_what_the_ledger_says_of_swinir_s_mapper() -> None:
    told = next(e for e in papers.differences("moeisr") if e.row == "Mapper of SwinIR-MoEISR(LTE)")
    costs = [c for c in moeisr.mapper_costs() if c.network.startswith("SwinIR-MoEISR(LTE)")]
    least, most = max(c.least for c in costs), min(c.most for c in costs)
    assert [round(limit / 1e3) for limit in (least, most)] == [113, 130] and "113K to 130K" in told.explanation
    lr = moeisr.pixels("Set14", 2)
    config = CONFIGS["moeisr-lte-s-swinir"]
    deepest = moeisr.bounds(config, lr, 2)[1]
    assert f"{float(deepest - lr * mapper_macs(config)) / 1e12:.4f}" == "0.2428" and "0.2428 T" in told.evidence
    assert f"{float(deepest) / 1e12:.4f}" == "0.2497" and "0.2497 T" in told.evidence
    assert "87 % of the way" in table3("SwinIR-MoEISR(LTE)-s (block=SwinIR-LTE)", 30).note
    shares = {(size, s): printed(f"SwinIR-MoEISR(LTE)-{size}", "SwinIR-LTE", s, "%") for size in "bs" for s in (3, 30)}
    assert list(map(str, shares.values())) == ["93.9", "91.8", "33.2", "31.3"]
    assert all(str(share) in told.explanation for share in shares.values())


# --- other entries of the ledger --------------------------------------------------------------------------------------


def table3(name: str, scale: int) -> papers.Cell:
    return papers.table("moeisr", 3).cell(name, "flops", scale, "Set14")


def printed(label: str, block: str, scale: int, unit: str = "T") -> Decimal:
    """A number of Table 3."""
    (found,) = (
        c.printed for c in papers.table("moeisr", 3, counts=False).cells
        if (c.row, c.variant.partition(";")[0], c.scale, c.unit) == (label, f"block={block}", scale, unit)
    )  # fmt: skip
    return Decimal(found)


def told(row: str) -> str:
    (entry,) = (e for e in papers.differences("moeisr") if e.row == row)
    return f"{entry.printed} {entry.ours} {entry.explanation} {entry.evidence}"


def test_printed_percentages_are_of_unrounded_flops() -> None:
    """All but one: a number within what the FLOPs may be before rounding, of the backbone's own, is printed so."""
    differ, impossible = [], []
    cells = papers.table("moeisr", 3, counts=False).cells
    of_moeisr = [c for c in cells if c.unit == "%" and "MoEISR" in c.row]
    for cell in of_moeisr:
        block = cell.variant.partition(";")[0].removeprefix("block=")
        own, backbone = (printed(label, block, cell.scale) for label in (cell.row, block))
        if (100 * own / backbone).quantize(Decimal("0.1")) != Decimal(cell.printed):
            differ.append((cell.row, cell.scale))
            decoder, depth = ("liif", 5) if "LIIF" in block else ("lte", 4)
            exact = set14(decoder, depth, cell.scale)
            below, above = (Fraction(by) / 100 for by in moeisr.READINGS[block.partition("-")[0]])
            low, high = ((Fraction(own) + by) / Fraction(exact) * 100 for by in (-below, above))
            half = Fraction(1, 20)
            if not low - half <= Fraction(Decimal(cell.printed)) <= high + half:
                impossible.append((cell.row, cell.scale))
    assert len(of_moeisr) == 96 and len(differ) == 13 and impossible == [("EDSR-MoEISR(LIIF)-b", 30)]
    assert "Twelve more of the 96" in told("Percentages of Table 3")
    backbone = set14("liif", 5, 2)
    assert [f"{100 * Decimal(part) / backbone:.1f}" for part in ("0.34", "0.35")] == ["26.7", "27.5"]
    assert f"{backbone:.4f}" == "1.2739" and f"{Decimal(100 * 194.68 / 286.62):.2f}" == "67.92"


def test_numbers_out_of_line_at_one_scale() -> None:
    text = told("MoEISR's rows at different scales")
    for label, encoder, expected in (
        ("EDSR-MoEISR(LIIF)-b", "EDSR", "194.81"),
        ("SwinIR-MoEISR(LIIF)-b", "SwinIR", "211.73"),
    ):
        at_24, at_30 = (printed(label, f"{encoder}-LIIF", scale) for scale in (24, 30))
        assert f"{at_24 * 900 / 576:.2f}" == expected and expected in text and str(at_30) in text
    assert len({c.network for c in moeisr.mapper_costs() if c.left_out}) == 6


def test_a_label_is_misprinted() -> None:
    assert printed(moeisr.MISPRINTED, "EDSR-LIIF", 30, "%") == Decimal("26.2")
    assert printed(moeisr.MISPRINTED, "EDSR-LIIF", 30) == Decimal("75.09")
    assert printed(moeisr.MISPRINTED, "RDN-LIIF", 30) == Decimal("76.96")


def test_table_5_counts_the_encoder_too() -> None:
    text = told("FLOPs of Table 5")
    convolutions = [m for m in ENCODERS["rdn"]().modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.weight.numel() for m in convolutions) == moeisr.RDN_MACS
    config, lr = CONFIGS["moeisr-liif-b-rdn"], Fraction(2040 * 1356, 16)
    assert f"{float(moeisr.bounds(config, Fraction(2040**2, 16), 4)[1]) / 1e12:.2f}" == "5.77" and "5.77 T" in text
    encoder = moeisr.RDN_MACS * lr
    least, most = (encoder + macs for macs in moeisr.bounds(config, lr, 4))
    assert [f"{float(macs) / 1e12:.2f}" for macs in (encoder, least, most)] == ["3.80", "5.45", "7.63"]
    assert all(figure in text for figure in ("3.80", "5.45", "7.63"))
    cells = flops(papers.table("moeisr", 5))
    assert all(least < Fraction(Decimal(c.printed)) * 10**12 < most for c in cells)
    assert round(100 * (Fraction(684, 100) * 10**12 - least) / (most - least)) == 64 and "64 %" in text
    assert "60 % of the way" in table3("RDN-MoEISR(LIIF)-b (block=RDN-LIIF)", 30).note and "60 %" in text
    urban = papers.table("moeisr", 4).cell("RDN-MoEISR(LIIF) -b", "flops", 4, "Urban100")
    assert "66 % of the way" in urban.note and "66 %" in text
    assert all("5.45 to 7.6" in c.note and c.verdict == "not-run" for c in cells)


def test_table_5_s_encoder_is_rdn() -> None:
    table1, table5 = (papers.table("moeisr", number, counts=False) for number in (1, 5))
    exact = Decimal(table5.cell("MoEISR(LIIF) -b", "psnr", 4, "DIV2K_val").printed)
    found = {e: table1.cell(f"{e}-MoEISR(LIIF) -b", "psnr", 4, "DIV2K_val").printed for e in moeisr.ENCODERS}
    assert found == {"EDSR": "29.01", "RDN": "29.29", "SwinIR": "29.49"}
    assert exact == Decimal("29.2909") and round(exact, 2) == Decimal(found["RDN"])
    assert all(number in told("Encoder of Table 5") for number in ("29.2909", "29.29", "29.01", "29.49"))


def test_other_figures_that_the_ledger_names() -> None:
    assert by_hand("liif", 256, 5) == 345_856 and "345,856" in told("Queries of an output pixel")
    estimator = 2 * 9 * 64 * 256
    assert estimator == 294_912 and "294,912" in told("What the FLOPs leave out")
    assert f"{estimator * SET14 / 10**12:.2f}" == "0.07"
    assert math.floor(100 * (set14("lte", 4, 2) + estimator * SET14 / 10**12)) == 79
    narrow = 128 * 128 + 2 * 128**2 + 3 * 128
    assert f"{100 * narrow / by_hand('lte', 256, 4):.1f}" == "25.1"
    cells = papers.table("moeisr", 3, counts=False).cells
    assert min(Decimal(c.printed) for c in cells if c.unit == "%" and c.row.endswith("(LTE)-s")) == Decimal("26.8")
    assert {c.scale for n in (1, 2, 3, 4, 5) for c in papers.table("moeisr", n, counts=False).cells} == {
        2, 3, 4, 6, 8, 12, 18, 24, 30,
    }  # fmt: skip
    assert 1000 * 20 * 800 // 16 == 1_000_000 and 1000 * 20 * 800 // 32 == 500_000


def test_differences_and_settings() -> None:
    entries = papers.differences("moeisr")
    assert {e.kind for e in entries} == {"print", "release", "choice"}
    assert all(e.row and e.printed and e.ours and e.explanation and e.evidence for e in entries)
    assert len({(e.kind, e.row) for e in entries}) == len(entries)
    found = {line["key"]: line["value"] for line in papers.settings("moeisr")}
    assert found["loss_weight_alpha"] == "3000" and found["batch"] == "not stated"


def test_table_4_repeats_table_2() -> None:
    table2, table4 = (papers.table("moeisr", number, counts=False) for number in (2, 4))
    names = {"RDN-MoEISR(LIIF) -b": "RDN-MoEISR(LIIF)-b", "RDN-MoEISR(LIIF) -s": "RDN-MoEISR(LIIF)-s"}
    names["LIIF -5layer"] = "RDN-LIIF"
    for here, there in names.items():
        for scale in (2, 3, 4, 6, 8):
            one, two = (t.cell(r, "psnr", scale, "Urban100") for t, r in ((table4, here), (table2, there)))
            assert one.printed == two.printed


def test_why_cells_are_not_run(filled: dict[int | str, papers.Table]) -> None:
    assert filled[2].cell("RDN (block=RDN-LTE)", "psnr", 2, "Set5").note == "peer, as printed"
    assert "1,000,000 steps" in filled[2].cell("RDN-LIIF", "psnr", 2, "Set5").note
    assert "500,000 steps of batch 32" in filled[1].cell("SwinIR-LTE", "psnr", 2, "DIV2K_val").note
    assert "DIV2K's validation images" in filled[1].cell("Bicubic (block=LTE)", "psnr", 2, "DIV2K_val").note
    assert all(cell.note for table in filled.values() for cell in table.cells if cell.verdict == "not-run")


# --- records ----------------------------------------------------------------------------------------------------------


def evaluation(model: str, config: MoEISRConfig, protocol: str = "liif", **train: object) -> str:
    """A made-up record of ``srlib evaluate --record R.json --out E.json`` at the paper's budget."""
    content = {
        "model": model,
        "budget": "paper",
        "config": {"network": asdict(config), "train": {"steps": 1_000_000, "expert_weights": ()} | train},
        "scores": [
            {"dataset": dataset, "scale": scale, "protocol": {"name": name}, "psnr": 30.0 + scale, "ssim": 0.8}
            for dataset, name in (("Urban100", protocol), ("DIV2K_val", f"{protocol}-div2k"), ("Set5", "matlab"))
            for scale in (2, 4, 5, 8)
        ],
        "bicubic": [],
    }
    return json.dumps(content)


def ours_in(records: Path) -> dict[int | str, set[tuple[str, int, str]]]:
    """Table -> the cells that a record filled: row, scale, data set."""
    return {
        number: {
            (c.row, c.scale, c.dataset)
            for c in papers.table("moeisr", number, counts=False, records=records).cells if c.ours is not None
        }
        for number in (1, 2, 3, 4, 5)
    }  # fmt: skip


def test_one_run_fills_its_row_at_all_scales_in_every_table(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(evaluation("moeisr-liif-b-rdn", CONFIGS["moeisr-liif-b-rdn"]))
    label = "RDN-MoEISR(LIIF)"
    assert ours_in(tmp_path) == {
        1: {(f"{label} -b", scale, "DIV2K_val") for scale in (2, 4)},
        2: {(f"{label}-b", scale, "Urban100") for scale in (2, 4, 8)},
        3: set(),
        4: {(f"{label} -b", scale, "Urban100") for scale in (2, 4, 8)},
        5: {("MoEISR(LIIF) -b", 4, "DIV2K_val")},
    }
    table2 = papers.table("moeisr", 2, counts=False, records=tmp_path)
    cell = table2.cell(f"{label}-b", "psnr", 8, "Urban100")
    assert (cell.ours, cell.note) == (38.0, "1,000,000 steps, protocol liif")
    (tmp_path / "run.json").write_text(evaluation("liif-rdn", replace(CONFIGS["liif-rdn"], depths=(3,))))
    assert ours_in(tmp_path) == {1: set(), 2: set(), 3: set(), 5: set(), 4: {
        ("LIIF -3layer", scale, "Urban100") for scale in (2, 4, 8)
    }}  # fmt: skip
    warm = replace(CONFIGS["moeisr-liif-b-rdn"], temperature=3.0)
    (tmp_path / "run.json").write_text(evaluation("moeisr-liif-b-rdn", warm))
    assert ours_in(tmp_path)[5] == {("MoEISR(LIIF) -b - tau 3", 4, "DIV2K_val")}


@pytest.mark.parametrize(
    "record",
    [
        evaluation("liif-edsr", replace(CONFIGS["liif-edsr"], cell=False)),  # a network that no row is
        evaluation("liif-edsr", CONFIGS["liif-edsr"], "safmn"),  # another protocol
        evaluation("moeisr-liif-b-edsr", CONFIGS["moeisr-liif-b-edsr"], expert_weights=(1.0, 1.0, 1.0, 3.7)),
        evaluation("liif-rdn", CONFIGS["liif-edsr"]),  # the network of another name
        evaluation("liif-edsr", CONFIGS["liif-edsr"]).replace('"paper"', '"short"'),
    ],
)
def test_any_other_run_fills_nothing(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    assert not any(ours_in(tmp_path).values())


def test_a_data_set_has_its_own_protocol() -> None:
    for name in CONFIGS:
        assert papers.paper_of(name) == "moeisr" and papers.protocol(name) == "liif"
        assert papers.protocol(name, "Set5") == "liif" and papers.protocol(name, "DIV2K_val") == "liif-div2k"
    assert papers.protocol("safmn", "DIV2K_val") == papers.protocol("safmn") == "safmn"


def test_bicubic_scores_of_div2k_come_from_records(tmp_path: Path) -> None:
    one = {"dataset": "DIV2K_val", "scale": 2, "protocol": {"name": "liif-div2k"}, "psnr": 31.0149, "ssim": 0.9}
    (tmp_path / "bicubic-x2.json").write_text(json.dumps(one))
    table = papers.table("moeisr", 1, counts=False, records=tmp_path)
    cells = [c for c in table.cells if (c.row, c.scale) == ("Bicubic", 2)]
    assert len(cells) == 2 and all((c.ours, c.verdict) == (31.0149, "exact") for c in cells)
