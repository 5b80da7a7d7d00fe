"""What papers claim is data: found, whole, and the same in every place that states it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from srlib import cli, models, papers, tables
from srlib.errors import InputError
from srlib.metrics import LIIF_LUMA, MATLAB_LUMA
from srlib.papers.seemore import macs_by_ranks

SLUGS = ("safmn", "seemore", "ssiu", "moeisr")
TABLES = [(slug, number) for slug in SLUGS for number in papers.tables(slug)]
CELLS = {  # how many numbers each table prints
    "safmn": {"1": 553, "2": 12, "3": 147, "4": 28, "5": 6},
    "seemore": {"1": 306, "2": 188, "3a": 14, "3b": 16, "4a": 16, "4b": 4, "4c": 12, "5a": 18, "5b": 6, "7": 16}
    | {"8": 94, "9": 39, "10": 12, "11": 6, "12": 9, "13": 12, "14": 9, "15": 12},
    "ssiu": {"1": 524, "2": 18, "3": 36, "4": 24},
    "moeisr": {"1": 160, "2": 276, "3": 288, "4": 60, "5": 12},
}


def test_papers_are_found_in_order_and_train_every_model() -> None:
    assert tuple(papers.all_papers()) == SLUGS
    assert sorted(name for paper in papers.all_papers().values() for name in paper.recipes) == sorted(models.names())
    for paper in papers.all_papers().values():
        assert set(paper.titles) == set(paper.recipes) and paper.main in paper.recipes
    assert papers.title("moeisr-lte-s-rdn") == "RDN-MoEISR(LTE)-s" and papers.title("bicubic") == "bicubic"
    assert len({(paper.colour, paper.marker) for paper in papers.all_papers().values()}) == len(SLUGS)


@pytest.mark.parametrize(("slug", "number"), TABLES)
def test_a_table_s_data_are_sound(slug: str, number: str) -> None:
    cells = papers.printed(slug, number)
    assert list(cells.columns) == "row variant scale dataset metric printed unit note".split()
    assert len(cells) == CELLS[slug][number]
    assert not cells.duplicated(["row", "variant", "scale", "dataset", "metric"]).any()
    assert cells.printed.str.fullmatch(r"\d+(\.\d+)?").all()
    measured = {"niqe", "brisque", "gpu_memory", "runtime", "time"}
    assert set(cells.metric) <= {*tables.COUNTED, *tables.TOLERANCE} | measured
    assert set(cells.unit) <= {"", *tables.UNITS, "dB", "%", "MB", "ms", "us"}


@pytest.mark.parametrize(("slug", "number"), TABLES)
def test_every_row_is_printed_in_that_order_and_builds(slug: str, number: str) -> None:
    cells = papers.printed(slug, number).to_dict("records")
    rows, places = papers.rows(slug, number), []
    for row in rows:
        places.append(next(i for i, c in enumerate(cells) if row.stands_for(c["row"], c["variant"], c["scale"])))
        with torch.device("meta"):
            assert models.create(row.model, row.scale, row.config).config == row.config
        assert set(row.train) <= set(vars(papers.recipe(row.model).train))
    assert places == sorted(places) or slug == "moeisr"  # MoEISR's rows are printed scale by scale
    assert len({(row.name, row.scale) for row in rows}) == len(rows)
    assert sum(row.baseline for row in rows) <= 1


def test_rows_of_our_own_tables_build_and_have_names_of_their_own() -> None:
    own = [(slug, name) for slug in SLUGS for name in {*papers.read(slug, "rows").table} - {*papers.tables(slug)}]
    assert ("moeisr", "mapper") in own and ("ssiu", "s3b") in own
    for rows in (papers.rows(*place) for place in own):
        assert len({row.slug for row in rows}) == len({row.key for row in rows}) == len(rows)
        assert sum(row.baseline for row in rows) == 1
        for row in rows:
            models.create(row.model, row.scale, row.config)


def test_rows_of_one_network_trained_alike_have_one_key() -> None:
    full = papers.row("seemore", "4a", "SeemoRe-T (RME=1;SME=1)")
    alike = {"4c": "SeemoRe-T (kernel=11)", "12": "SeemoRe-T (L1=1.0;FFT=0.1)"}
    assert {papers.row("seemore", *place).key for place in alike.items()} == {full.key}
    for other in ("SeemoRe-T (L1=1.0;FFT=0.0)", "SeemoRe-T (L1=1.0;FFT=0.2)"):
        assert papers.row("seemore", "12", other).key != full.key
    for rate in ("lr = 1e-4", "MoEISR(LTE)-s"):  # the paper's rate, which is not that of a short budget
        assert sum(papers.row("moeisr", "mapper", rate).key == row.key for row in papers.rows("moeisr", "mapper")) == 1


def test_a_row_is_found_by_label_or_name() -> None:
    assert papers.row("safmn", "3", "LN -> BN").config.norm == "batch"
    assert papers.row("safmn", "3", "LN -> None, lr=1x10^-4").train == {"lr": 1e-4}
    assert papers.row("safmn", "1", "SAFMN (Ours)", 3).config.scale == 3
    assert papers.row("seemore", "4c", "SeemoRe-T (kernel=7)").config.kernel == 7
    assert papers.row("moeisr", "4", "LIIF -3layer").config.depths == (3,)
    with pytest.raises(InputError, match="has 3 rows 'SeemoRe-T'; choose one of: SeemoRe-T .kernel=3., scale 2; "):
        papers.row("seemore", "4c", "SeemoRe-T")
    with pytest.raises(InputError, match="has no rows 'CARN'; choose one of: SAFMN .Ours., scale 2; "):
        papers.row("safmn", "1", "CARN")


def test_unknown_names_are_refused_with_what_there_is() -> None:
    for call in (papers.paper, papers.tables, papers.settings, papers.ledger):
        with pytest.raises(InputError, match="unknown paper 'edsr'; choose one of: safmn, seemore, ssiu, moeisr"):
            call("edsr")
    for call in (papers.printed, papers.rows):
        with pytest.raises(InputError, match="seemore has no table '4'; choose one of: 1, 2, 3a, 3b, 4a, 4b"):
            call("seemore", "4")
    for call in (papers.of, papers.recipe):
        with pytest.raises(InputError, match="no paper has a model 'edsr'; choose one of: safmn, seemore-t"):
            call("edsr")
    with pytest.raises(InputError, match="unknown protocol 'basicsr'; choose one of: matlab, safmn"):
        papers.protocol("basicsr")


def test_recipes_are_those_that_the_papers_print() -> None:
    """A setting's key in the printed settings, the recipe's field, and what makes one of the other."""
    fields = {
        "batch": ("batch", int),
        "iterations": ("steps", int),
        "lr_init": ("lr", lambda text: float(text.split(" ")[0])),
        "lr_final": ("lr_final", float),
        "loss_weight_fft": ("fft_weight", float),
        "loss_weight_l1": ("l1_weight", lambda text: float(text.split(" ")[0])),
        "loss_weight_alpha": ("l1_weight", float),
        "loss_weight_beta": ("balance_weight", float),
        "lr_decay_rate": ("lr_decay", float),
        "patch": ("patch", lambda text: int(text.split("x")[0])),
        "betas": ("betas", lambda text: tuple(map(float, text.split(",")))),
        "lr_milestones": ("milestones", lambda text: tuple(map(int, text.split(",")))),
    }
    checked = set()
    for slug, paper in papers.all_papers().items():
        printed = papers.settings(slug).set_index("key").value
        for key, (field, read) in fields.items():
            if key in printed and not printed[key].startswith("not stated"):
                assert getattr(paper.recipes[paper.main].train, field) == read(printed[key]), (slug, key)
                checked.add((slug, key))
    assert len(checked) >= 22 and {key for _, key in checked} == set(fields)


def test_what_only_the_releases_say() -> None:
    """Facts of the released settings that no paper prints."""
    safmn, ssiu = (papers.recipe(model).train for model in ("safmn", "ssiu"))
    assert (safmn.fft_weight, safmn.ema_decay) == (0.05, 0.999)
    assert (ssiu.steps, ssiu.optimizer, ssiu.weight_decay) == (1_000_500, "adamw", 1e-4)
    liif, swinir = (papers.recipe(f"moeisr-liif-b-{encoder}").train for encoder in ("edsr", "swinir"))
    assert (liif.steps, liif.batch, liif.milestones[0], liif.queries) == (1_000_000, 16, 200_000, 2304)
    assert (swinir.steps, swinir.batch, swinir.milestones[0]) == (500_000, 32, 250_000)


def test_protocols_are_those_of_the_releases() -> None:
    names = ("safmn", "seemore", "seemore-l", "ssiu", "liif", "liif-div2k")
    safmn, seemore, large, ssiu, liif, div2k = map(papers.protocol, names)
    assert [*papers.protocols()] == ["matlab", *names]
    assert safmn.same_arithmetic(seemore) and papers.protocol("matlab").round_luma
    assert (safmn.luma, safmn.border(4), safmn.clamp, safmn.round_image) == (MATLAB_LUMA, 4, True, True)
    assert (large.border(4), large.border(2)) == (3, 2)
    assert (ssiu.luma_offset, ssiu.clamp, ssiu.ssim_precision, ssiu.means) == (4080, False, "float32", "up")
    assert (liif.luma, liif.round_image, div2k.channel, div2k.border(4)) == (LIIF_LUMA, False, "rgb", 10)
    assert papers.recipe("seemore-l").protocol == large
    assert papers.recipe("lte-edsr").protocol_on("DIV2K_val") == div2k
    assert papers.recipe("lte-edsr").protocol_on("Set5") == liif


def test_a_ledger_s_entries_are_of_four_kinds() -> None:
    columns = "kind table row scale metric dataset printed ours explanation evidence".split()
    for slug in SLUGS:
        entries = papers.ledger(slug)
        assert list(entries.columns) == columns and set(entries.kind) <= {"cell", "print", "release", "choice"}
        assert set(entries.table) <= {"", *papers.tables(slug)} and not entries.duplicated().any()


def test_a_label_makes_a_file_name() -> None:
    assert papers.slug("CCM -> Channel MLP") == "ccm-to-channel-mlp"
    assert papers.slug("LN -> None, lr=1x10^-3 *") == "ln-to-none-lr-1x10-3"


def test_routes_of_seemore_by_hand() -> None:
    """Six groups, each with one expert of rank 2, 4 or 8: 3 C R multiply-adds a pixel for the one that is chosen."""
    routes = macs_by_ranks(models.default_config("seemore-t"), (10, 10), 10**9)
    assert list(routes) == sorted({2 * a + 4 * b + 8 * (6 - a - b) for a in range(7) for b in range(7 - a)})
    assert routes[48] == 10**9 - 3 * 36 * 100 * (6 * 14 - 48)


TOY_MODEL = """
from dataclasses import dataclass
from torch import nn
from srlib.models.layers import Config

@dataclass(frozen=True)
class ToyConfig(Config):
    scale: int = 4
    channels: int = 2

    def build(self):
        network = nn.Sequential(nn.Conv2d(3, 3 * self.scale**2, 3, padding=1), nn.PixelShuffle(self.scale))
        network.config = self
        return network

CONFIGS = {"toy": ToyConfig()}
"""
TOY_PAPER = """
from srlib.papers import Paper, Recipe
from srlib.papers.safmn import PROTOCOL, TRAIN

PAPER = Paper(
    slug="toy", name="Toy", title="A fifth paper", order=5, colour="#123456", marker="*",
    main="toy", titles={"toy": "Toy"}, peer_tables=(), own_rows="Toy",
    recipes={"toy": Recipe(TRAIN, PROTOCOL)},
)
"""
TOY_DATA = {
    "table1": "row,variant,scale,dataset,metric,printed,unit,note\nToy,,2,,params,336,,\nToy,,2,Set5,psnr,30.00,dB,\n",
    "rows": "table,row,variant,model,network,train,baseline\n1,Toy,,toy,scale=2,,\n",
    "ledger": "kind,table,row,scale,metric,dataset,printed,ours,explanation,evidence\n",
    "claims": "claim,place,evidence,link,verdict,why\nToy is small.,Table 1,336 values.,/chapters/toy,holds,Exact.\n",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fifth paper in a folder of its own: one file of a model, one of the paper, and its data."""
    for package, text in ((models, TOY_MODEL), (papers, TOY_PAPER)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "toy.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setattr(papers, "DATA", shutil.copytree(papers.DATA, tmp_path / "data"))
    for name, text in TOY_DATA.items():
        (papers.DATA / f"toy_{name}.csv").write_text(text)
    papers.all_papers.cache_clear()
    yield
    papers.all_papers.cache_clear()
    for package in (models, papers):
        sys.modules.pop(f"{package.__name__}.toy", None)
        vars(package).pop("toy", None)


def test_a_fifth_paper_is_found_by_its_files_alone(toy: None) -> None:
    assert "toy" in models.names() and tuple(papers.all_papers()) == (*SLUGS, "toy")
    assert papers.paper("toy").colour == "#123456" and papers.of("toy").slug == "toy"
    frame = tables.table("toy", "1")
    assert list(frame.verdict) == ["exact", "not-run"] and frame.ours[0] == 3 * 12 * 9 + 12
    assert "500,000 steps of batch 64" in frame.note[1]
    assert tables.ledger("toy").empty
    assert papers.claims().claim.iloc[-1] == "Toy is small."
    result = CliRunner().invoke(cli.app, ["complexity", "toy", "--scale", "2", "--csv"])
    assert result.exit_code == 0 and "336" in result.output


def test_a_fifth_paper_s_network_has_its_colour(toy: None) -> None:
    viz = pytest.importorskip("srlib.viz", reason="needs the book extra", exc_type=ImportError)
    assert viz.look(["Toy"]) == {"palette": {"Toy": "#123456"}, "markers": {"Toy": "*"}}
