"""The ``srlib`` command: train, evaluate, upscale, export, table, complexity, data, weights, record, doctor.

Each command imports what it needs when it runs, so that help comes at once. Exit codes: 0 done; 1 some of it failed,
or a check did; 2 bad input, with a line on standard error that says how to mend it (of options Typer's own); 75 a
training that was stopped, which the same command resumes; 130 Ctrl-C and 143 SIGTERM where nothing was to be saved.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import srlib
from srlib.errors import InputError, Stopped, say, write

if TYPE_CHECKING:
    from torch import nn

    from srlib.data import Store
    from srlib.runs import Run

# Threads that wait for others sleep instead of spinning, which on a busy machine takes the others' time. For torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
EVERY_SCALE = (2, 3, 4, 6, 8)  # at which a network for every scale is scored: those of MoEISR's Table 2


class Commands(TyperGroup):
    """The commands; what ends one early is a line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (InputError, Stopped) as error:
            say(str(error))
            raise typer.Exit(75 if isinstance(error, Stopped) else 2) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # a reader of the output left early (``| head``)
                raise
            say(f"{error.filename or 'this machine'}: {error.strerror or error}")
            raise typer.Exit(2) from None


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "add_completion": False}
SETTINGS |= {"pretty_exceptions_enable": False, "context_settings": {"help_option_names": ["-h", "--help"]}}
app = typer.Typer(cls=Commands, **SETTINGS)
data_app = typer.Typer(help="Datasets: what there is, whether it is whole, and fetching.", **SETTINGS)
app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Argument(help="A model, such as safmn, seemore-t, ssiu or moeisr-lte-s-edsr.")]
Scale = Annotated[int | None, typer.Option(min=1, help="How many times larger, each way; default 4, or the run's.")]
Record = Annotated[Path | None, typer.Option(help="A run: its folder, or the file that `train --record` wrote.")]
Weights = Annotated[Path | None, typer.Option(help="A file of weights, ours or released; default: those that ship.")]
Images = Annotated[list[str] | None, typer.Option("--data", help="Default: photos/held-out, and Set5, Set14 if here.")]
DataRoot = Annotated[Path | None, typer.Option(help="The data folder; default: the variable SRLIB_DATA.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Precision = Annotated[Literal["32-true", "bf16", "fp16"], typer.Option(help="Of a network's arithmetic.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


@app.callback(invoke_without_command=True)
def common(version: Annotated[bool, typer.Option("--version", is_eager=True)] = False) -> None:
    """Efficient image super-resolution, as four papers build and claim it."""
    if version:
        print(srlib.__version__)
        raise typer.Exit


@app.command(epilog="Example: srlib train seemore-t --scale 4 --budget smoke")
def train(
    model: Model,
    scale: Scale = None,
    budget: Annotated[Literal["smoke", "short", "equal", "paper"], typer.Option(help="How long.")] = "smoke",
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the budget's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step, instead of the budget's.")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Side of an LR patch, instead of the budget's.")] = None,
    table: Annotated[str, typer.Option(help="Train a row of this table of the model's paper ...")] = "",
    row: Annotated[str, typer.Option(help="... the one with this printed label.")] = "",
    data: Annotated[str, typer.Option(help="Training images: a dataset or a folder.")] = "photos/train",
    held_out: Annotated[str, typer.Option(help="Images to score while training.")] = "photos/held-out",
    data_root: DataRoot = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and batches.")] = 0,
    precision: Annotated[Literal["32-true", "bf16-mixed"], typer.Option(help="Of the arithmetic.")] = "32-true",
    device: Device = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    record: Annotated[Path | None, typer.Option(help="Write to this JSON file which run it is.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for another process that trains the same run, or leave.")] = True,
) -> None:
    """Train a model, or load the run if it is there; an interrupted run resumes where it stopped.

    Ctrl-C and SIGTERM save and end with exit code 75. Several GPUs train the same run as one does:
    torchrun --nproc-per-node 2 -m srlib train seemore-t --scale 4
    """
    from srlib import models, papers
    from srlib import runs as engine

    if bool(table) != bool(row):
        raise InputError("--table and --row go together, as in: srlib train safmn --table 3 --row Baseline")
    store, watched = open_stores([data, held_out], data_root)
    length: dict[str, Any] = dict(budget=budget, steps=steps, batch=batch, patch=patch, seed=seed, precision=precision)
    if row:
        one = papers.row(papers.of(model).slug, table, row, scale)
        if one.model != model:
            raise InputError(f"{row!r} of table {table} is a row of {one.model}: name that model, not {model}")
        config = engine.configure_row(one, store, scale=scale, **length)
    else:
        usual = 4 if models.takes_scale(model) else None
        config = engine.configure(model, scale or usual, store, **length)
    if record:  # before the training, as it may fail
        record.parent.mkdir(parents=True, exist_ok=True)
    first = not int(os.environ.get("RANK", 0))  # of several processes the first one says it
    if first:
        say(f"{runs / config.slug}: {config.train.steps:,} steps of batch {config.train.batch} on {store.name}")
    run = engine.train_or_load(config, store, watched, root=runs, device=device, compile=compile, wait=wait)
    if not first:
        return
    if record:
        write(record, json.dumps({"run": str(run.folder), "table": table, "row": row}).encode())
    held = run.held_out
    if held["dataset"] != watched.name:
        say(f"{run.folder} keeps its scores, on {held['dataset']}: srlib evaluate --record scores it on others")
    scored = f"{held['dataset']} x{held['scale']} PSNR {held['psnr']:.2f} dB, SSIM {held['ssim']:.4f}"
    print(f"{run.folder}, {run.ending}: {scored} (protocol {held['protocol']}, LR: {held['lr_origin']})")


@app.command("evaluate", epilog="Example: srlib evaluate bicubic --scale 4 --data photos/held-out")
def score(
    model: Annotated[str, typer.Argument(help="A model, or bicubic; left out with --record.")] = "",
    record: Record = None,
    weights: Weights = None,
    scale: Scale = None,
    data: Images = None,
    protocol: Annotated[list[str] | None, typer.Option(help="Evaluation protocols; default: the paper's.")] = None,
    luma: Annotated[bool, typer.Option("--luma", help="Bicubic as papers quote it, on the luma plane alone.")] = False,
    precision: Precision = "32-true",
    data_root: DataRoot = None,
    device: Device = "auto",
    images: Annotated[bool, typer.Option("--images", help="Print a line for each image.")] = False,
    as_csv: AsCsv = False,
) -> None:
    """Score a run, a file of weights, those that ship, or bicubic; say under which protocol and on which LR images.

    Images that cannot be read are named and left out, of the dataset's title, too, and a dataset that cannot be scored
    is named and passed over; then the exit code is 1.
    """
    import pandas as pd

    from srlib import evaluate, metrics, papers, parallel

    where, frames, whole = parallel.pick_device(device), [], True
    model, network, own = find_network(model, scale, weights, record, precision)
    scales, stores = [own] if own else EVERY_SCALE if network else [4], open_stores(data, data_root)
    title = model if precision == "32-true" else f"{model} in {precision}"
    named = [papers.protocol(name) for name in protocol or ()]
    upscalers = {one: evaluate.upscaler(network.to(where), one, precision, where) for one in scales if network}
    for store, factor in product(stores, scales):
        usual = papers.recipe(model).protocol_on(store.image_set.name) if network else metrics.MATLAB
        given = (store, factor, named or [usual], where)
        try:
            found = {title: evaluate.score_under(upscalers[factor], *given)} if network else {}
            base = evaluate.score_under(evaluate.bicubic(factor), *given) if not luma else ()
            found["bicubic"] = base or (evaluate.luma_bicubic(store, factor),)
        except InputError as error:
            say(f"{store.name} x{factor} is not scored: {error}")
            whole = False
            continue
        frames += [scores.frame().assign(model=name) for name, each in found.items() for scores in each]
    if not frames:
        raise typer.Exit(2)
    scores = pd.concat(frames, ignore_index=True)
    if scores.psnr.isna().any():
        raise InputError(f"the output of {model} is not finite: its weights are damaged, give others")
    if not images:
        keys = ["dataset", "scale", "model", "protocol", "lr"]
        scores = scores.groupby(keys, sort=False)[["psnr", "ssim"]].mean().reset_index()
    show(scores, as_csv, psnr="{:.2f} dB", ssim="{:.4f}")
    if not whole or any(store.broken for store in stores):
        raise typer.Exit(1)


@app.command("upscale", epilog="Example: srlib upscale photo.jpg large.png")
def enlarge(
    sources: Annotated[list[str], typer.Argument(metavar="IN...", help="Files, folders, or patterns in quotes.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A file for one file, else a folder.")],
    model: Annotated[str, typer.Option(help="bicubic, or a model; default: safmn for 2, 3 and 4, else MoEISR.")] = "",
    scale: Annotated[float | None, typer.Option(min=1, help="How many times larger; default 4, or the run's.")] = None,
    weights: Weights = None,
    record: Record = None,
    format: Annotated[Literal["png", "jpeg", "webp", "tiff"] | None, typer.Option(help="In a folder.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP.")] = 95,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that are there already.")] = False,
    tile: Annotated[int | None, typer.Option(min=0, help="Side of tiles in LR pixels; 0: the whole at once.")] = None,
    beside: Annotated[bool, typer.Option("--beside", help="Put bicubic interpolation to the left.")] = False,
    precision: Precision = "32-true",
    device: Device = "auto",
) -> None:
    """Enlarge PNG, JPEG, WebP and TIFF files, with colour profile, transparency and 16 bits kept.

    Of a folder or several files, those that are there already are left, so that the same command goes on where it
    stopped; exit code 1 if one failed. bicubic and networks for every scale take any scale, such as 2.5.
    """
    from srlib import evaluate, parallel, pictures, upscale

    made, notes = upscale.jobs(sources, out, format)

    def end(*_: Any) -> None:
        for job in made:
            pictures.part_of(job.target).unlink(missing_ok=True)
        os._exit(143)  # an exception could be raised, and lost, where libvips calls Python while it writes

    signal.signal(signal.SIGTERM, end)
    where, failed = parallel.pick_device(device), False
    usual = "" if record else "safmn" if scale in (None, 2, 3, 4) else "moeisr-lte-s-edsr"
    _, network, own = find_network(model or usual, scale, weights, record, precision)
    factor = own or 4
    upscaler = network and evaluate.upscaler(network.to(where), factor, precision, where)
    options: dict[str, Any] = {"force": force, "quality": quality, "beside": beside, "tile": tile, "device": where}
    say(*notes)
    for job in made:
        status, notes = upscale.enlarge_file(job, upscaler, factor, **options)
        if [job.source] == [Path(os.path.expanduser(source)) for source in sources] and status != "done":
            raise InputError("; ".join(notes) or f"{job.target} is there already: give another name, or --force")
        print(f"{job.target}: {status}", flush=True)
        say(*(note if note.startswith(str(job.source)) else f"{job.source}: {note}" for note in notes))
        failed |= status == "failed"
    raise typer.Exit(int(failed))


@app.command("export", epilog="Example: srlib export safmn safmn-x4.onnx")
def export_onnx(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    scale: Scale = None,
    weights: Weights = None,
    record: Record = None,
) -> None:
    """Write a network as an ONNX file for images of any height and width, and compare it with PyTorch in onnxruntime.

    Sides are 32 pixels or more; SAFMN takes multiples of 8, SSIU of 16. A network for every scale is written for one.
    """
    from srlib import evaluate, export

    if out.suffix != ".onnx":
        raise InputError(f"{out} is no name for an ONNX file: give one such as {model}.onnx")
    _, network, own = find_network(model, scale, weights, record)
    if network is None:
        raise InputError("bicubic has no network: name a model")
    factor = own or 4
    out.parent.mkdir(parents=True, exist_ok=True)
    made = export.to_onnx(evaluate.upscaler(network, factor))
    write(out, made.content)
    sides = f"multiples of {made.step}, " * (made.step > 1)
    print(f"{out}: x{factor}, sides: {sides}{export.SMALLEST} or more; largest difference {made.difference:.1e}")


@app.command("table", epilog="Example: srlib table safmn 3 --csv")
def print_table(
    paper: Annotated[str, typer.Argument(help="A paper, such as safmn.")],
    number: Annotated[str, typer.Argument(help="Number of the table, such as 3 or 4a, or the name of one of ours.")],
    as_csv: AsCsv = False,
) -> None:
    """Print a paper's table, each cell beside ours with a verdict, or the trained rows of a table of our own."""
    from srlib import papers, tables

    if number not in papers.tables(paper):
        show(tables.own_table(paper, number), as_csv, psnr="{:.2f}")
    else:
        signed: Any = dict.fromkeys(("gap", "gap_low", "gap_high"), "{:+.2f}")
        found = tables.table(paper, number)[tables.TOLD]
        show(found if as_csv else found.drop(columns="runs"), as_csv, ours="{:.6g}", trained="{:.2f}", **signed)


@app.command("complexity", epilog="Example: srlib complexity safmn --scale 4")
def count(
    model: Model,
    scale: Scale = 4,
    time: Annotated[bool, typer.Option("--time", help="Time it, too, with random weights; two threads.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What to time on.")] = "cpu",
    as_csv: AsCsv = False,
) -> None:
    """Count a model's parameters, multiply-adds and activations as the papers do, for an output of 1280x720 with all
    experts; of a network for every scale those that a black LR image of 48x48 pixels takes.

    A time has the unit of one 3x3 convolution (64 to 64 channels, 180x320), which is timed anew before each call.
    """
    import torch

    from srlib import complexity, evaluate, models, parallel

    factor, fixed = scale or 4, models.takes_scale(model)
    size = complexity.lr_size(factor) if fixed else (48, 48)
    upscaler = evaluate.upscaler(models.create(model, factor if fixed else None).eval(), factor)
    row: dict[str, Any] = {"model": model, "scale": factor, "lr_height": size[0], "lr_width": size[1]}
    if time:
        where = parallel.pick_device(device)
        torch.set_num_threads(2)
        call = partial(upscaler.to(where), torch.rand(1, 3, *size, device=where))
        with torch.inference_mode():
            took = complexity.latency(call, device=where, unit=complexity.yardstick(where))
        row |= {"units": took.median, "minimum": took.minimum, "maximum": took.maximum, "unit_ms": 1e3 * took.unit}
        row["device"] = took.device
    found = complexity.count(upscaler.cpu(), size, training=fixed)
    row |= {"params": found.params, "macs": found.macs, "acts": found.acts}
    show([row], as_csv, units="{:.1f}", minimum="{:.1f}", maximum="{:.1f}", unit_ms="{:.1f}")


@data_app.command("list")
def data_list(
    names: Annotated[list[str] | None, typer.Argument(help="Datasets; default: all.", show_default=False)] = None,
    data_root: DataRoot = None,
) -> None:
    """List the papers' datasets, how many of their images are here, and what is wrong with them. The images of those
    that are named are decoded, too; exit code 1 if one is not whole. Example: srlib data list Set5"""
    from srlib import datasets

    if not names:
        show_status(datasets.listing(data_root))
        return
    from srlib.data import Store

    found = datasets.listing(data_root, names, lambda one: Store(one).image_set)
    show_status(found)
    if any(status.found != status.expected for status in found):
        raise typer.Exit(1)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Dataset, as `srlib data list` names it.")],
    data_root: DataRoot = None,
) -> None:
    """Fetch a dataset from its public address into the data folder. Example: srlib data get Set5 --data-root data"""
    from srlib import datasets

    show_status(datasets.get(name, data_root, say=say))


@app.command(epilog="Example: srlib weights")
def weights(as_csv: AsCsv = False) -> None:
    """List the weights that ship: how they were trained, and their PSNR in dB, with its gain over bicubic.

    Those for every scale are scored at x4. The protocol is SAFMN's for all; lr says where LR images came from. Set5's
    woman is a photograph of BSD400, too.
    """
    from srlib import results

    found, runs = results.shipped(), results.runs()
    ids, formats = found.file.map(runs[runs.purpose == "ships"].set_index("weights").run), {}
    places = [*zip(ids, found.scale.fillna(4), strict=True)]
    for name in results.SETS:
        means = results.means(datasets=[name]).set_index(["run", "scale"]).reindex(places)
        for column, form in {"psnr": "{:.2f}", "gain": "{:.2f}", "lr": "{}"}.items():
            found[f"{name} {column}"], formats[f"{name} {column}"] = means[column].to_list(), form
    show(found, as_csv, **formats)


@app.command("record", epilog="Example: srlib record safmn.json ships-safmn-x4 --purpose ships")
def record_run(
    run: Annotated[Path, typer.Argument(help="Its folder, or the file that `train --record` wrote.")],
    name: Annotated[str, typer.Argument(help="Its id, such as ships-safmn-x4 or equal-safmn-seed0.")],
    purpose: Annotated[Literal["ships", "equal", "precision", "ablation"], typer.Option()],
    data: Images = None,
    data_root: DataRoot = None,
) -> None:
    """Score a finished run and write it to the tables in book/results; one that "ships" with its weights."""
    from srlib import results

    finished = find_run(run)
    said = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {}
    place = {key: said.get(key, "") for key in ("table", "row")}
    found = results.record(finished, name, purpose, open_stores(data, data_root), **place)
    show(found, psnr="{:.2f} dB", ssim="{:.4f}", gain="{:+.2f} dB")


@app.command(epilog="Example: srlib doctor")
def doctor(data_root: DataRoot = None) -> None:
    """Say what is installed and which datasets are here, and check resizing, weights that ship for x4 and scores."""
    import torch

    from srlib import complexity, datasets, evaluate, metrics, resize, results, runs
    from srlib.data import Store

    here = ", ".join(f"{one.name} {one.what} {one.found}" for one in datasets.listing(data_root) if one.found)
    print(f"srlib {srlib.__version__}, commit {runs.commit()}; Python {platform.python_version()}")
    print(f"torch {torch.__version__}; {complexity.describe_device('cpu')}; GPU: {torch.cuda.is_available()}")
    print(f"images: {here or 'none beside the photographs'}")
    pixels = torch.tensor([[0, 37, 74], [91, 129, 167], [182, 221, 4]], dtype=torch.uint8)[None, None]
    lr, hr = Store.open("photos/held-out").pair(0, 4)
    upscalers: list[Any] = [evaluate.bicubic(4)]
    upscalers += [evaluate.upscaler(results.load(model), 4) for model in results.shipped(4).model]
    with torch.inference_mode():
        made = [upscale(lr[None] / 255)[0] for upscale in upscalers]
    bicubic, *ours = (metrics.psnr(sr, hr, metrics.MATLAB, 4).item() for sr in made)
    checks = {
        "resizing": resize.imresize(pixels, scale=2)[0, 0, 0].tolist() == [0, 5, 20, 37, 58, 68],  # as MATLAB does
        "weights and metrics": bool(ours) and min(ours) > bicubic + 0.5,  # dB
    }
    for name, right in checks.items():
        print(f"{name}: {'ok' if right else 'FAILED'}")
    if not all(checks.values()):
        say("a check failed: install what constraints.txt pins")
        raise typer.Exit(1)


def open_stores(names: list[str] | None, root: Path | None) -> list[Store]:
    """The images of these names, with a line on what is not as it should be; by default the held-out photographs, and
    Set5 and Set14 where they are here."""
    from srlib import data, datasets

    if not names:
        there = datasets.listing(root, ("Set5", "Set14")) if datasets.data_root(root) else []
        names = ["photos/held-out", *dict.fromkeys(status.name for status in there if status.found)]
    stores = [data.Store(datasets.find(name, root)) for name in names]
    say(*(note for store in stores for note in store.notes))
    return stores


def find_run(path: Path) -> Run:
    """The finished run of a folder, or of the file that ``srlib train --record`` wrote."""
    from srlib.runs import Run

    try:
        run = Run(path if path.is_dir() else Path(json.loads(path.read_text(encoding="utf-8"))["run"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no run: give its folder, or the file that `srlib train --record` wrote") from None
    if not run.finished:
        raise InputError(f"no finished run at {run.folder}: resume it by its command, or start where it was trained")
    return run


def find_network(
    model: str, scale: float | None, file: Path | None, record: Path | None, precision: str = "32-true"
) -> tuple[str, nn.Module | None, Any]:
    """A model's name, its network (None: bicubic) of a run, of a file or as shipped, and the scale that it was asked or
    trained for (None: every one); says where weights come from."""
    from srlib import checkpoints, models, results

    if record:
        run = find_run(record)
        name, own, train = (run.config[key] for key in ("model", "scale", "train"))
        if file or model not in ("", name) or (own and scale not in (None, own)):
            raise InputError(f"{record} is {name} at scale {own}: name no other, and leave out --scale and --weights")
        say(f"{name}, {run.ending} of batch {train['batch']} on {run.config['data']}")
        return name, run.network(), own or scale
    if not model:
        raise InputError("no model: give bicubic, a model, or --record RUN")
    if model == "bicubic":
        if file or precision != "32-true":
            raise InputError("bicubic has no weights: name a model, or leave out --weights and --precision")
        return model, None, scale
    own = int(scale or 4) if models.takes_scale(model) else None
    if own and own != (scale or 4):
        raise InputError(f"{model} enlarges a whole number of times: give --scale 4, or a model for every scale")
    if file:
        return model, checkpoints.load(file, model, own), own or scale
    shipped = results.trained(model, own)
    say(f"{model}: weights that ship, trained here, {shipped.caption}")
    return model, shipped.network, own or scale


def show_status(found: list[Any]) -> None:
    """Print what is here of datasets, and each problem in a line on standard error."""
    show([{key: getattr(one, key) for key in ("name", "what", "expected", "found", "folder")} for one in found])
    say(*(f"{one.name} {one.what}: {problem}" for one in found for problem in one.problems))


def show(rows: Any, as_csv: bool = False, **formats: str) -> None:
    """Print a frame, or rows, as CSV or as a table; ``formats`` are of its columns."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    if as_csv:
        sys.stdout.write(frame.to_csv(index=False))
        return
    for name in frame:
        text = formats.get(str(name), "{}").format
        frame[name] = [text(value) if pd.notna(value) else "" for value in frame[name]]
    print(frame.to_string(index=False) if len(frame) else "nothing is recorded")
