"""The ``srlib`` command: train, evaluate, keep, upscale, table, tables, complexity, speed, data, doctor, weights.

Each command imports what it needs when it runs, so that help comes at once. What ends early says why in one line on
standard error. Exit codes: 0 done; 1 some of it failed, or a check did; 2 bad input, or refused; 75 stopped by a
signal, and the same command goes on; 130 Ctrl-C where nothing was to be saved.
"""

import contextlib
import csv
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srlib.errors import InputError, Stopped, expanded

if TYPE_CHECKING:
    from srlib.data import Store

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

ANY_SCALE = (2, 3, 4, 6, 8)  # at which a model for every scale is scored: those of MoEISR's Table 2
USAGE_ERROR = typer.BadParameter.__mro__[1]  # click's UsageError, from whichever click this Typer carries

Model = Annotated[
    str,
    typer.Argument(
        help="Model: safmn, seemore-t, seemore-b, seemore-l, ssiu; for every scale: liif-E, lte-E, moeisr-liif-b-E, "
        "moeisr-liif-s-E, moeisr-lte-b-E or moeisr-lte-s-E, with edsr, rdn or swinir for E, the encoder."
    ),
]
Scale = Annotated[int, typer.Option(help="How many times larger the output is, each way.")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder that holds benchmark/Set5 and others; default: the variable SRLIB_DATA.")
]
GetRoot = Annotated[Path | None, typer.Option("--data-root", help="The data folder; default: the variable SRLIB_DATA.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


def main() -> None:
    """Run the command; bad input becomes one line and exit code 2.

    So does what a disk or the memory refuses; a reader of the output that leaves early (``| head``) ends the command
    without a word, as it ends others.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # what a terminal or a file name may not spell
    try:
        os.getcwd()
    except OSError:
        stop("the working folder is there no more: change to another")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        stop(f"{error.filename or 'this machine'}: {error.strerror or error}")
    except MemoryError:
        stop("not enough memory: take smaller images, or a machine with more")
    except InputError as error:
        stop(str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx else "srlib"
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help itself
            print(error.format_message())
            sys.exit(2)
        argument = getattr(getattr(error, "param", None), "param_type_name", "") == "argument"
        if argument and type(error).__name__ == "MissingParameter":  # which one, of two, only who called knows
            usage = " ".join(error.ctx.command.collect_usage_pieces(error.ctx)[1:])
            stop(f"Missing argument: the command is `{path} {usage}`. See `{path} --help`.")
        stop(f"{error.format_message().rstrip('.')}. See `{path} --help`.")
    if code == 130:  # which Typer makes of Ctrl-C
        stop("interrupted", code=130)
    if code:
        sys.exit(code)


def stop(line: str, code: int = 2) -> None:
    """Say one line on standard error and leave; of several processes that train together, each says which it is."""
    process = rank()
    print(f"srlib{f', process {process}' if process else ''}: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


def rank() -> int:
    """Which of the processes this is that ``torchrun`` has started; 0 for one that it hasn't."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def print_version(wanted: bool) -> None:
    """Print the version and leave, if it is wanted."""
    if wanted:
        import srlib

        print(srlib.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print srlib's version.")
    ] = False,
) -> None:
    """Efficient image super-resolution, as four papers build and claim it."""


@app.command()
def train(
    model: Model,
    scale: Annotated[
        int | None,
        typer.Option(
            help="How many times larger the output is, each way; default 4 or the row's. "
            "Leave it out for a model for every scale."
        ),
    ] = None,
    budget: Annotated[str, typer.Option(help="smoke, short, equal or paper.")] = "smoke",
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the budget's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step, instead of the budget's.")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of an LR patch, instead of the budget's.")] = None,
    table: Annotated[
        str | None, typer.Option(help="Train a row of this ablation table of the model's paper ...")
    ] = None,
    row: Annotated[str | None, typer.Option(help="... the row with this printed label.")] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="As few steps as the rows of an ablation table are trained.")
    ] = False,
    fine_tune: Annotated[
        Path | None, typer.Option(help="Go on from the run of this record, with real-world degradation.")
    ] = None,
    data: Annotated[str, typer.Option(help="Training images: photos/train, or a folder.")] = "photos/train",
    held_out: Annotated[str, typer.Option(help="Images to score while training.")] = "photos/held-out",
    data_root: DataRoot = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "32-true",
    device: Device = "auto",
    compile: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    runs: Runs = Path("runs"),
    record: Annotated[Path | None, typer.Option(help="Write the run's record to this JSON file.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for another process that trains the same run, or leave.")
    ] = True,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Train a model, or load the run if it is there; an interrupted run goes on where it stopped.

    Ctrl-C and SIGTERM save and end with exit code 75; the same command goes on. So it does after a kill or a loss of
    power, from the last saved step. Several GPUs, or processes, train the same run as one does:

    torchrun --nproc-per-node 2 -m srlib train seemore-t --scale 4

    Example: srlib train seemore-t --scale 4 --budget smoke
    """
    from srlib import papers
    from srlib import runs as engine
    from srlib.data import degraded
    from srlib.models import takes_scale
    from srlib.processes import NOT_BEGUN, Signals

    check_format(as_json, as_csv)
    # names first: nothing is decoded for a run that cannot be
    length = engine.Length(steps, batch, patch)
    label = ", ".join(length.words(budget))
    engine.training(model, budget, seed=seed, precision=precision, length=length)
    if scale is not None and not takes_scale(model):
        raise InputError(f"{model} is trained for every scale at once: leave --scale out")
    if record:
        engine.check_writable(record)
    if (table is None) != (row is None):
        number, label = next(((number, row.name) for number, row in ablations(model) if row.model == model), ("", ""))
        if not number:
            raise InputError(f"no ablation table has a row of {model}: leave --table and --row out")
        raise InputError(f'--table and --row go together, as in: srlib train {model} --table {number} --row "{label}"')
    if table is not None and not papers.rows(papers.paper_of(model), table):
        known = ", ".join(dict.fromkeys(number for number, _ in ablations(model)))
        raise InputError(f"table {table} of {papers.paper_of(model)} has no row to train; choose a table of: {known}")
    if ablation and (table is not None or fine_tune):
        raise InputError("a table's row and a fine-tuning have that length already: leave --ablation out")
    if fine_tune and (table is not None or scale is not None):
        raise InputError("--fine-tune goes on with the record's own network and scale: leave --table and --scale out")
    start = read_run(fine_tune, runs, model) if fine_tune else None
    options: dict[str, Any] = {"budget": budget, "seed": seed, "precision": precision, "length": length}
    progress = contextlib.redirect_stdout(sys.stderr) if as_json or as_csv else contextlib.nullcontext()
    try:
        with Signals() as signals, signals.at_once(NOT_BEGUN), progress:
            store, watched = open_store(data, data_root), open_store(held_out, data_root)
            if start:
                config = engine.fine_tune(start, store, **options)
                watched = degraded(watched)
            elif table is None or row is None:
                usual = 4 if takes_scale(model) else None
                config = engine.configure(model, usual if scale is None else scale, store, ablation=ablation, **options)
            else:
                config = engine.configure_row(model, table, row, scale, store, **options)
            what = row or ("fine-tuned for real-world images" if start else "")
            at = "for every scale" if config.scale is None else f"x{config.scale}"
            title = ", ".join([f"{model} {at}", label, *([what] if what else [])])
            run = engine.train_or_load(
                config, store, watched, root=runs, device=device, compile=compile, wait=wait, title=title
            )
    except Stopped as error:
        stop(str(error), code=75)
    except KeyboardInterrupt:
        stop("interrupted; the same command goes on from the last saved step", code=130)
    if rank():  # of several processes the first one says it
        return
    if record:
        engine.write_json(record, run.record() | {"budget": label, "table": table, "row": row})
    held = run.held_out
    if as_json or as_csv:
        ended = {"run": run.folder.name, "steps": run.metrics["steps"], "collapsed_at": run.metrics["collapsed_at"]}
        scored = {key: held[key] for key in ("dataset", "scale", "psnr", "ssim")}
        show([ended | scored | {"protocol": held["protocol"]["name"]}], as_json, as_csv)
        return
    where, under = f"{held['dataset']} x{held['scale']}", f"{held['protocol']['name']} protocol"
    ending = f", {run.ending}" if run.metrics["collapsed_at"] else ""
    print(f"{run.folder}{ending}: {where} PSNR {held['psnr']:.2f} dB, SSIM {held['ssim']:.4f} ({under})")


def ablations(model: str) -> list[tuple[str, Any]]:
    """The rows that ``srlib train --table --row`` takes in the paper of a model, each with the number of its table."""
    from srlib import papers
    from srlib import runs as engine

    numbers = [number for paper, number in papers.tables() if paper == papers.paper_of(model)]
    found = [(str(number), papers.rows(papers.paper_of(model), number)) for number in numbers]
    return [(number, row) for number, rows in found if not engine.holds_the_networks(rows) for row in rows]


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model, or bicubic, when no run is named.")] = "",
    record: Annotated[
        Path | None, typer.Option(help="Score the run of this record (from `srlib train --record`).")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Score these weights: a run's model.safetensors or a released file; "
            "default: those that come with srlib (`srlib weights`)."
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            help="How many times larger, each way; default 4, or the run's; "
            "a model for every scale is scored at 2, 3, 4, 6 and 8."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Images; may be repeated. Default: held-out photographs and what is there of Set5 and Set14."
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="Evaluation protocol; may be repeated. Default: the paper's.")
    ] = None,
    luma: Annotated[
        bool, typer.Option(help="Bicubic as the papers' tables quote it: the luma plane alone is reduced and enlarged.")
    ] = False,
    degradation: Annotated[
        str | None, typer.Option(help="bicubic or real-esrgan: what makes LR images; default bicubic, or the run's.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Enlarge in tiles of so many LR pixels a side, 0 for none; default: what the free memory asks for."
        ),
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="LR pixels that a tile shares with the next.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Write scores to this JSON file.")] = None,
    images: Annotated[bool, typer.Option(help="Print a line for each image.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Score a run, a file of weights, those that come with srlib, or bicubic, and say under which protocol.

    Where an image is enlarged in tiles, a column says in how large ones, and the record does for each image. Where
    nobody asked for them and they change what the model makes, a line says so.

    Example: srlib evaluate bicubic --scale 4 --data photos/held-out
    """
    from srlib import metrics, pretrained
    from srlib import runs as engine
    from srlib.data import degraded
    from srlib.evaluate import bicubic, luma_bicubic, score
    from srlib.models import names, takes_scale
    from srlib.tiles import check_settings

    check_format(as_json, as_csv)
    check_settings(tile, overlap)
    if record is None and not model:
        raise InputError(
            "nothing to score: give bicubic, a model (srlib evaluate safmn, with --weights FILE for other weights than "
            "srlib's own), or a run's --record (srlib evaluate --record RUN.json)"
        )
    if record is not None and model:
        raise InputError(f"--record says which model it is: leave out {model}, or give {model} and --weights alone")
    if weights is not None and (model == "bicubic" or record is not None):
        raise InputError("--weights go with a model's name: srlib evaluate safmn --weights FILE")
    if luma and (model != "bicubic" or protocol or degradation):
        raise InputError("--luma is a way to score bicubic, with its own protocol: srlib evaluate bicubic --luma")
    if model == "bicubic" and (tile is not None or overlap is not None):
        raise InputError("--tile and --overlap are for a network: bicubic needs none of them")
    if degradation not in (None, "bicubic", "real-esrgan"):
        raise InputError(f"no degradation {degradation!r}: choose bicubic or real-esrgan")
    where = engine.pick_device(device)
    origin: dict[str, Any] = {}
    network, said = None, ""
    if record is not None:
        origin = engine.read_json(record)
        run = read_run(record, runs)
        model = run.config["model"]
        if scale is not None and takes_scale(model):
            raise InputError("--scale is the run's own with --record: leave it out")
        scale = run.config["scale"] if scale is None else scale
        network = run.network(where)
        degradation = degradation or run.config["train"].get("degradation", "bicubic")
    elif model != "bicubic":
        if model not in names():
            raise InputError(f"unknown model {model!r}: choose bicubic or one of {', '.join(names())}")
        scale = 4 if scale is None and takes_scale(model) else scale
        if weights is None:
            shipped = pretrained.find(model, scale)
            said, origin = shipped.line, {"weights": shipped.path.name, "line": shipped.line}
        network = (shipped.network() if weights is None else read_weights(weights, model, scale).eval()).to(where)
    else:
        scale = 4 if scale is None else scale
    scales = ANY_SCALE if scale is None else (scale,)
    for name in protocol or ():
        metrics.protocol(name)
    stores = [open_store(name, data_root) for name in data] if data else default_sets(data_root)
    if degradation == "real-esrgan":
        stores = [degraded(store) for store in stores]

    def scored(upscaler: Callable[[int], Any], **tiles: int | None) -> list[Any]:
        """Scores at each scale on each set, under each protocol."""
        found = []
        for factor, store in product(scales, stores):
            usual = "matlab" if network is None else engine.recipe(model).protocol_on(store.name)
            for name in protocol or [usual]:
                found.append(score(upscaler(factor), store, factor, metrics.protocol(name), device=where, **tiles))
        return found

    baseline = [luma_bicubic(store, scales[0]) for store in stores] if luma else scored(bicubic)
    wish = {"tile": tile, "overlap": overlap}
    scores = [] if network is None else scored(lambda factor: engine.upscaler(network, factor), **wish)
    found = {model: scores, "bicubic": baseline}
    if out:
        lists = {"scores": [one.record() for one in scores], "bicubic": [one.record() for one in baseline]}
        engine.write_json(out, origin | {"model": model, "scale": scale, "commit": engine.commit()} | lists)
    tiled = any(one.tile is not None for one in (*scores, *baseline))
    rows = [
        {"dataset": one.dataset, "scale": one.scale, "model": name, "protocol": one.protocol.name}
        | ({"image": each.name} if images else {})
        | {"psnr": each.psnr, "ssim": each.ssim}
        | ({"tile": each.tile, "overlap": each.overlap} if tiled else {})
        for name, part in found.items() for one in part for each in (one.images if images else [one])
    ]  # fmt: skip
    if said:
        print_line(said, as_json or as_csv)
    show(rows, as_json, as_csv, formats={"psnr": "{:.2f} dB", "ssim": "{:.4f}"})
    cut = [(one.tile, one.overlap) for one in scores if one.tile is not None]
    if cut and tile is None and takes_scale(model):
        side, shared = min(cut)
        print(
            f"srlib: the free memory asked for tiles (of {side} LR pixels, overlap {shared}, or larger), beyond "
            f'which {model} looks: what that changes is on the page "Images of any size"; --tile 0 does without',
            file=sys.stderr,
        )


@app.command()
def keep(
    record: Annotated[Path, typer.Argument(help="Record of the run, from `srlib train --record`.")],
    name: Annotated[str, typer.Option(help="Name of what is written: NAME.json, NAME.log.csv, NAME.validation.csv.")],
    into: Annotated[Path, typer.Option(help="Folder of the kept records.")],
    weights: Annotated[
        Path | None, typer.Option(help="Write the weights, too, to NAME.safetensors in this folder (srlib/weights).")
    ] = None,
    scale: Annotated[
        list[int] | None,
        typer.Option(help="Score a model for every scale at this scale; may be repeated. Default: 2, 3, 4 if trained."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Images to score; may be repeated. Default: held-out photographs, Set5, Set14."),
    ] = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Score a finished run and keep its record: settings, scores beside bicubic's, curves, and the command that makes
    it again; with --weights also its weights, in half precision unless that moves a mean PSNR by more than 0.01 dB.

    Example: srlib keep safmn.json --name safmn-x4 --into book/results/trained
    """
    from srlib import pretrained

    check_format(as_json, as_csv)
    run = read_run(record, runs)
    origin = json.loads(record.read_text(encoding="utf-8"))
    kept = pretrained.keep(
        origin, run, name, into, sets=data or pretrained.SETS, data_root=data_root, scales=scale, weights=weights
    )
    bicubic = kept["bicubic"] or [None] * len(kept["scores"])
    rows = [
        {"dataset": one["dataset"], "scale": one["scale"], "protocol": one["protocol"]["name"]}
        | {"psnr": one["psnr"], "ssim": one["ssim"], "bicubic": base and base["psnr"]}
        for one, base in zip(kept["scores"], bicubic, strict=True)
    ]
    show(rows, as_json, as_csv, formats={"psnr": "{:.2f} dB", "ssim": "{:.4f}", "bicubic": "{:.2f} dB"})


def print_line(line: str, apart: bool) -> None:
    """Say which weights are used; ``apart`` from output that a program reads, on standard error."""
    print(f"srlib: {line}" if apart else line, file=sys.stderr if apart else sys.stdout, flush=True)


def read_run(record: Path, runs: Path, model: str = "") -> Any:
    """The run of a record, in the folder of the runs; InputError where it is none, or another model's."""
    from srlib import runs as engine

    origin = engine.read_json(record)
    if not isinstance(origin.get("run"), str):
        raise InputError(f"{record} is no record of a run: give the file that `srlib train --record` wrote")
    if "/" in origin["run"] or os.sep in origin["run"] or origin["run"] in ("", ".", ".."):
        raise InputError(f"{record} names {origin['run']!r:.50} as its run, no folder of runs: give another record")
    run = engine.Run(runs / origin["run"])
    if not run.folder.is_dir():
        again = f" ({shlex.join(map(str, origin['command']))})" if isinstance(origin.get("command"), list) else ""
        raise InputError(f"the run {origin['run']} of {record} is not in {runs}: give --runs, or train it again{again}")
    if model and run.config["model"] != model:
        raise InputError(f"{record} is a run of {run.config['model']}, not {model}: name the model that it holds")
    return run


def read_weights(path: Path, model: str, scale: int | None) -> Any:
    """A network of ``model`` from one of our files, which name their network, or from a released one."""
    from srlib import runs as engine
    from srlib.models import create, takes_scale

    ours = path.suffix == ".safetensors" and "model" in engine.read_tensors(path)[1]
    if ours:
        return engine.load(path, model, scale)
    return engine.load_released(create(model, scale if takes_scale(model) else None), path)


@app.command()
def upscale(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="IN", help="Pictures: a file, a folder, or a pattern in quotes; several may be given."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A file for one file, else a folder, made if need be.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="bicubic, or a model; left out with --record, which names it. Default: safmn, or where no weights of "
            "it come for that scale, a model for every scale."
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="How many times larger, each way; default 4, or the record's. "
            "bicubic and models for every scale take any number from 1, such as 2.5."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The model's weights: a run's model.safetensors or a released file; "
            "default: those that come with srlib (`srlib weights`)."
        ),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Use the run of this record (from `srlib train --record`).")
    ] = None,
    runs: Runs = Path("runs"),
    format: Annotated[
        str | None, typer.Option(help="png, jpeg, webp or tiff, for a folder; default: each picture's own.")
    ] = None,
    quality: Annotated[int, typer.Option(help="Quality of JPEG and of lossy WebP, 1 to 100.")] = 95,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write WebP without loss.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that are there already.")] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of the tiles in input pixels, 0 for the whole at once; default: what the memory allows."
        ),
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Input pixels that neighbouring tiles share.")] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Put bicubic interpolation to the left of what the network makes.")
    ] = False,
    memory: Annotated[
        float | None, typer.Option(help="GiB that the network may use; default: a safe part of what is free.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Enlarge pictures: PNG, JPEG, WebP and TIFF.

    16 bits a channel stay 16 in PNG and TIFF; in JPEG and WebP they become 8. Grey stays grey: the luma of what the
    network makes of three equal channels. Transparency is enlarged by bicubic; hidden colours take those of the nearest
    visible pixels first, and JPEG gets white instead. Black-and-white becomes grey, a palette RGB, CMYK RGB through its
    profile. Pictures are turned upright as EXIF says; other EXIF, the colour profile and the resolution are kept, XMP
    and text are not. Of several pictures in a file the first is taken. 32-bit and floating-point pixels are refused.

    An output that is there already is never replaced without --force: one is an error, among several it is left as it
    is, so that the same command goes on where it stopped. A folder and a pattern are several even if there is one. Exit
    code 1: some of several pictures failed, each with a line, and the rest are done. Put -- before a name that begins
    with a dash.

    The weights that come with srlib were trained here, not by the papers' authors: a line says how. For others:
    srlib upscale holiday large --model safmn --scale 4 --weights model.safetensors.

    Example: srlib upscale photo.jpg large.png
    """
    from srlib import pretrained
    from srlib import runs as engine
    from srlib import upscale as enlarging
    from srlib.logs import someone_watches
    from srlib.models import takes_scale
    from srlib.pictures import NoRoom
    from srlib.tiles import check_settings

    check_format(as_json, as_csv)
    check_settings(tile, overlap)
    if not 1 <= quality <= 100:
        raise InputError(f"quality {quality}: give a number from 1 to 100")
    if memory is not None and not 0 < memory < 2**20:
        raise InputError(f"{memory:g} GiB of memory: give a number above 0, such as 4")
    if record is not None and weights is not None:
        raise InputError("--record and --weights both say which weights: give one of them")
    if model == "bicubic" and (tile, overlap, memory) != (None, None, None):
        raise InputError("--tile, --overlap and --memory are for a network: bicubic needs none of them")
    if weights is not None and model is None:
        raise InputError("no model: --weights go with its name, as in --model safmn --weights FILE")
    if model == "bicubic" and beside:
        raise InputError("--beside puts bicubic to the left of a network's picture: name another model")
    where = engine.pick_device(device)
    made, several = enlarging.jobs(sources, out, format)
    network, said = None, ""
    if record is not None:
        run = read_run(record, runs, model or "")
        model, trained = run.config["model"], run.config["scale"]
        if trained is not None and scale not in (None, trained):
            raise InputError(f"the run of {record} enlarges {trained} times: leave --scale out")
        scale = (trained or 4) if scale is None else scale
        enlarging.check_model(model, scale)
        network = run.network(where)
    else:
        scale = 4 if scale is None else scale
        enlarging.check_model("bicubic", scale)
        model = pretrained.usual(scale) if model is None else model
        enlarging.check_model(model, scale)
        if weights is not None and model == "bicubic":
            raise InputError("bicubic has no weights: leave --weights out, or name the model that they are of")
        if weights is not None:
            network = read_weights(weights, model, int(scale) if takes_scale(model) else None).to(where)
        elif model != "bicubic":
            shipped = pretrained.find(model, int(scale) if takes_scale(model) else None)
            network, said = shipped.network().to(where), shipped.line_at(scale)
    upscaler = None if network is None else engine.upscaler(network.eval(), scale)
    limit = None if memory is None else int(memory * 2**30)
    method = enlarging.Method(scale, upscaler, where, tile, overlap, limit, beside)
    saving = enlarging.Saving(quality, lossless, force)
    rows: list[dict[str, Any]] = []
    line, code = "", 0
    if said:
        print_line(said, as_json or as_csv)
    try:
        with enlarging.ended_cleanly():
            for result in enlarging.enlarge_all(made, method, saving, watched=someone_watches()):
                if not several and result.status == "kept":
                    raise InputError(f"{result.job.target} is there already: give another name, or --force")
                if not several and result.status == "failed":
                    raise InputError("; ".join(result.notes))
                for note in result.notes:
                    said = note if result.status == "failed" else f"{result.job.source}: {note}"
                    print("srlib: " + " ".join(said.split()), file=sys.stderr)
                rows.append(result.record())
    except KeyboardInterrupt:
        line, code = "interrupted; finished pictures are whole, and the same command goes on with the others", 130
    except enlarging.Terminated:
        line, code = "stopped; finished pictures are whole, and the same command goes on with the others", 75
    except NoRoom as error:
        line, code = f"{error}: mend that, and the same command goes on", 2
    if kept := sum(row["status"] == "kept" for row in rows):
        print(f"srlib: outputs that were there already and were left: {kept}; --force replaces them", file=sys.stderr)
    if rows:
        show(rows if as_json or as_csv else [enlarged_text(row) for row in rows], as_json, as_csv)
    if code:
        stop(line, code)
    if any(row["status"] == "failed" for row in rows):
        sys.exit(1)


def enlarged_text(row: dict[str, Any]) -> dict[str, Any]:
    """What became of a picture, as a line of the printed table."""
    sizes = [f"{row[of + 'width']}x{row[of + 'height']}" if row[of + "width"] else None for of in ("", "out_")]
    tiles = f"{row['tiles']} of {row['tile']}" if row["tile"] else ("whole" if row["tiles"] else None)
    kept = {"output": row["output"], "status": row["status"], "from": sizes[0], "to": sizes[1], "tiles": tiles}
    return kept | {"seconds": row["seconds"]}


@app.command()
def table(
    paper: Annotated[str, typer.Argument(help="Paper: safmn, seemore, ssiu or moeisr.")],
    number: Annotated[str, typer.Argument(help="Number of the table, such as 3 or 4a.")],
    records: Annotated[Path | None, typer.Option(help="Folder of score records; usually book/results.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Print a paper's table: each printed cell beside ours, with a verdict.

    Example: srlib table safmn 3 --csv
    """
    from dataclasses import asdict

    from srlib import papers

    check_format(as_json, as_csv)
    usual = Path("book/results")
    found = papers.table(paper, number, records=records or (usual if usual.is_dir() else None))
    if as_csv:
        sys.stdout.write(found.csv())
        return
    cells = [asdict(cell) | {"ours": cell.ours_text} for cell in found.cells]
    for cell in () if as_json else cells:
        del cell["record"], cell["source"]
    show(cells, as_json, False)


@app.command()
def tables(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    records: Annotated[Path | None, typer.Option(help="Folder of score records; usually book/results.")] = None,
) -> None:
    """Write every table of every paper into a folder, as CSV and as JSON that says where each number comes from.

    Example: srlib tables tables
    """
    import platform

    import torch

    import srlib
    from srlib import papers
    from srlib import runs as engine

    usual = Path("book/results")
    engine.check_writable(folder / "index.json")
    found = papers.all_tables(records=records or (usual if usual.is_dir() else None))
    made = {"commit": engine.commit(), "srlib": srlib.__version__}
    made |= {"python": platform.python_version(), "torch": torch.__version__}
    for one in found:
        (folder / f"{one.record}.csv").write_text(one.csv(), encoding="utf-8")
        engine.write_json(folder / f"{one.record}.json", one.described() | made)
    engine.write_json(folder / "index.json", {"tables": [one.record for one in found]} | made)
    print(f"{len(found)} tables, {sum(len(one.cells) for one in found)} printed cells in {folder}")


@app.command()
def complexity(
    model: Model,
    scale: Scale = 4,
    height: Annotated[
        int | None, typer.Option(help="Height of the LR image; default: that of a 1280x720 HR image.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width of the LR image.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Count a model's parameters, multiply-adds and activations as the papers do.

    A mixture of experts is counted with all of them, and then with those of its cheapest and its dearest route. A
    model for every scale is counted at --scale, its decoder by the formula that its paper's tables follow.

    Example: srlib complexity safmn --scale 4
    """
    from srlib import complexity as counting
    from srlib import papers
    from srlib.models import create, takes_scale

    check_format(as_json, as_csv)
    network = create(model, scale if takes_scale(model) else None)
    usual = counting.lr_size(scale)
    size = (usual[0] if height is None else height, usual[1] if width is None else width)
    row = {"model": model, "scale": scale, "lr_height": size[0], "lr_width": size[1]}
    if not takes_scale(model):
        show([row | queried_macs(network, size, scale)], as_json, as_csv)
        return
    counts = counting.count(network, size)
    row |= {"params": counts.params, "macs": counts.macs}
    if routes := papers.route_macs(model, network.config, size):
        row |= {"macs_least": routes[0], "macs_most": routes[1]}
    show([row | {"acts": counts.acts}], as_json, as_csv)


def queried_macs(network: Any, size: tuple[int, int], scale: int) -> dict[str, int]:
    """Parameters and multiply-adds of a network for every scale, for an LR image of ``size``: those of its encoder, and
    of all with every expert at every query, with the shallowest alone and with the deepest alone."""
    from srlib import complexity as counting
    from srlib.models.moeisr import decoder_macs, mapper_macs

    encoder = counting.count(network.encoder, size).macs
    before = encoder + mapper_macs(network.config) * size[0] * size[1]
    queries = (4 if network.config.ensemble else 1) * scale**2 * size[0] * size[1]
    experts = decoder_macs(network.config)
    return {
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "encoder_macs": encoder,
        "macs": before + queries * sum(experts),
        "macs_least": before + queries * min(experts),
        "macs_most": before + queries * max(experts),
    }


@app.command()
def speed(
    model: Model,
    scale: Scale = 4,
    training: Annotated[
        bool, typer.Option(help="Time a training step instead: batch 16, LR patches of 32x32, or 48x48.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads, at most one a processor; default 2, where there are as many.")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Time a model in units of one 3x3 convolution (64 to 64 channels, 180x320), taken anew before each call.

    The image is the one of a 1280x720 output; of a model for every scale, 48x48, as are its patches in training, for
    2304 output pixels each.

    Example: srlib speed safmn --scale 4
    """
    import torch

    from srlib import complexity as measuring
    from srlib import runs as engine
    from srlib.models import create, takes_scale
    from srlib.train import make_objective, make_optimizer

    check_format(as_json, as_csv)
    processors = os.cpu_count() or 1
    threads = min(2, processors) if threads is None else threads
    if threads < 1:
        raise InputError(f"{threads} threads cannot compute: give --threads 1 or more")
    if threads > max(2, processors):  # two are the yardstick's condition, on any machine
        raise InputError(f"{threads} threads on {processors} processors: give --threads {max(2, processors)} or fewer")
    where = engine.pick_device(device)
    torch.set_num_threads(threads)
    if scale < 1:
        raise InputError(f"scale {scale} makes no image: give a whole number from 1 up")
    fixed = takes_scale(model)
    network = create(model, scale if fixed else None).to(where)
    if training:
        settings = engine.recipe(model).train
        batch = tuple(part.to(where) for part in random_batch(scale, settings.queries, 32 if fixed else settings.patch))
        objective, optimizer = make_objective(settings), make_optimizer(network, settings)

        def call() -> None:
            objective(network, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        size = measuring.lr_size(scale) if fixed else (48, 48)
        upscale = engine.upscaler(network.eval(), scale)
        image = torch.rand(1, 3, *size, device=where)

        def call() -> None:
            with torch.inference_mode():
                upscale(image)

    found = measuring.in_units(call, device=where)
    row = {"model": model, "scale": scale, "what": "training step" if training else "image", "units": found.median}
    row |= {"minimum": found.minimum, "maximum": found.maximum, "unit_ms": 1e3 * found.unit, "device": found.device}
    show(
        [row],
        as_json,
        as_csv,
        formats={"units": "{:.1f}", "minimum": "{:.1f}", "maximum": "{:.1f}", "unit_ms": "{:.1f}"},
    )


def random_batch(scale: int, queries: int, side: int) -> list[Any]:
    """A batch of 16 LR patches of noise, with HR patches, or with so many queries each."""
    import torch

    lr = torch.rand(16, 3, side, side)
    if not queries:
        return [lr, torch.rand(16, 3, side * scale, side * scale)]
    cell = torch.full((16, 2), 2 / (side * scale))
    return [lr, 2 * torch.rand(16, queries, 2) - 1, cell, torch.rand(16, queries, 3)]


data_app = typer.Typer(help="Data sets: what there is, whether it is whole, and fetching.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("list")
def data_list(data_root: GetRoot = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the papers' data sets: how many images each has, what of it is here, who publishes it, how it is had.

    Example: srlib data list
    """
    from srlib import sources

    check_format(as_json, as_csv)
    rows = [one.record() for one in sources.found(data_root)]
    if not (as_json or as_csv):
        kept = ("name", "images", "found", "lr", "folder", "publisher", "get")
        rows = [{name: row[name] for name in kept} for row in rows]
    show(rows, as_json, as_csv)


@data_app.command("check")
def data_check(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets; default: all.", show_default=False)] = None,
    data_root: GetRoot = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image, not its header alone.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Check data sets: the number of images, their names and sizes, LR against HR. Exit code 1 if something is amiss.

    What is missing is said with where it must lie and how to get it.

    Example: srlib data check Set5
    """
    from srlib import sources

    check_format(as_json, as_csv)
    asked = [sources.source(name).name for name in names or ()]
    asked = asked or [name for name, one in sources.SOURCES.items() if not one.made_of]
    rows = []
    for name in dict.fromkeys(asked):
        with progress_bar(name) if deep else contextlib.nullcontext() as progress:
            rows += sources.check(name, data_root, deep=deep, progress=progress)
    show_checked(rows, as_json, as_csv)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Data set, as `srlib data list` names it.")],
    data_root: GetRoot = None,
    hr_only: Annotated[
        bool, typer.Option("--hr-only", help="Leave out archives of LR images: they are made from HR when needed.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch and replace what is there already.")] = False,
) -> None:
    """Fetch a data set from its publisher into the data folder, where the other commands find it.

    An interrupted download goes on when the command is given again. Exit code 1 if what was fetched isn't whole.

    Example: srlib data get Set5 --data-root data
    """
    from srlib import sources

    show_checked(sources.get(name, data_root, force=force, hr_only=hr_only), False, False)


@app.command()
def weights(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the weights that come with srlib: how they were trained, and their PSNR beside bicubic's.

    They were trained here, for a part of the paper's steps ("of the paper's"). PSNR is the mean on each image set,
    under one protocol for all (that of SAFMN); in brackets bicubic interpolation of the same LR images.

    Example: srlib weights
    """
    from srlib import pretrained

    check_format(as_json, as_csv)
    rows = []
    for one in pretrained.available():
        for scale in one.scales:
            rows.append(one.row(scale) if as_json or as_csv else shipped_text(one.row(scale)))
    if not rows:
        raise InputError("no weights come with this srlib: train some with `srlib train safmn`, or install it anew")
    show(rows, as_json, as_csv)
    if not (as_json or as_csv):
        print(f"PSNR under the protocol {pretrained.STANDARD}; in brackets bicubic interpolation's. Set5's woman is a")
        print("photograph of BSD400, too.")


def shipped_text(row: dict[str, Any]) -> dict[str, Any]:
    """Shipped weights at a scale, as a line of the printed table."""
    kept = {name: row[name] for name in ("model", "scale")} | {"steps": f"{row['steps']:,}"}
    kept |= {"of the paper's": f"1/{1 / row['share']:,.0f}", "of its pixels": f"1/{1 / row['pixels']:,.0f}"}
    kept |= {name: row[name] for name in ("batch", "patch", "data")}
    kept |= {"file": f"{row['bytes'] / 1024:,.0f} KiB", "precision": row["precision"]}
    for name in [name.removesuffix(" psnr") for name in row if name.endswith(" psnr")]:
        kept[name] = f"{row[f'{name} psnr']:.2f} ({row[f'{name} bicubic']:.2f}) dB"
    return kept


@app.command()
def doctor(
    data_root: DataRoot = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print what wrong conventions cost, alone, as CSV.")] = False,
) -> None:
    """Say what is installed, check resizing, metrics and the weights that ship, and show what wrong conventions cost.

    Costs are those of bicubic x4 on the held-out photographs. Exit code 1 if a check fails.

    Example: srlib doctor
    """
    from dataclasses import asdict

    from srlib import doctor as examining

    check_format(as_json, as_csv)
    installed = examining.installation(data_root)
    checks = examining.checks(data_root)
    costs, amiss = [], ""
    try:
        costs = [asdict(cost) for cost in examining.costs(open_store("photos/held-out", None))]
    except InputError as error:  # the rest is worth knowing all the more
        amiss = str(error)
    rows = [{"check": one.name, "verdict": one.verdict, "found": one.found, "expected": one.expected} for one in checks]
    if as_json:
        print(json.dumps({"installation": installed, "checks": rows, "costs": costs}, indent=1))
    elif as_csv and costs:
        show(costs, False, True)
    elif not as_csv:
        show([{"what": name, "here": text} for name, text in installed.items()], False, False)
        show(rows, False, False)
        signed = {"psnr": "{:.2f} dB", "ssim": "{:.4f}", "psnr_cost": "{:+.2f} dB", "ssim_cost": "{:+.4f}"}
        show(costs, False, False, formats=signed) if costs else print(f"no costs: {amiss}")
    if failed := [one.name for one in checks if one.passed is False]:
        names = ", ".join(failed)
        stop(f"{len(failed)} of {len(checks)} checks failed ({names}): install what constraints.txt pins", code=1)


def show_checked(rows: list[Any], as_json: bool, as_csv: bool) -> None:
    """Print what was checked, then leave with exit code 1 if anything is missing or wrong."""
    table = [
        {"name": row.part, "what": row.what, "expected": row.expected, "found": row.found, "whole": row.whole}
        | {"folder": row.folder}
        | ({"problems": list(row.problems) if as_json else "; ".join(row.problems)} if as_json or as_csv else {})
        for row in rows
    ]
    show(table, as_json, as_csv)
    for row in () if as_json or as_csv else rows:
        for problem in row.problems[:20]:
            print(f"{row.part} {row.what}: {problem}")
        if len(row.problems) > 20:
            print(f"{row.part} {row.what}: and {len(row.problems) - 20} more, which --json has")
    if not all(row.whole for row in rows):
        sys.exit(1)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for calls with the number of things done and to do, drawn in a terminal alone."""
    from tqdm.auto import tqdm

    with tqdm(desc=title, unit="image", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def open_store(spec: str, root: Path | None) -> "Store":
    """The decoded images that ``spec`` names; what nothing else is called may be a folder of the data folder's train/,
    so that a run's own name for its images finds them again."""
    from srlib.data import Store, find

    try:
        found = find(spec, root)
    except InputError as error:
        base = expanded(root or Path(os.environ.get("SRLIB_DATA") or os.devnull))
        if not spec or not os.path.isdir(base / "train" / spec):
            alone = spec and not set(spec) & {"/", os.sep}
            more = f"; or set SRLIB_DATA to the folder with train/{spec}" if alone else ""
            raise InputError(f"{error}{more}") from None
        found = find(str(base / "train" / spec), root)
    return Store.open(found)


def default_sets(root: Path | None) -> list["Store"]:
    """The held-out photographs, and Set5 and Set14 where a data root has them."""
    from srlib.data import datasets

    there = {summary.name for summary in datasets(root) if summary.present}
    return [
        open_store(name, root) for name in ("photos/held-out", *(name for name in ("Set5", "Set14") if name in there))
    ]


def check_format(as_json: bool, as_csv: bool) -> None:
    """Refuse what ``show`` can't print: InputError for JSON and CSV at once."""
    if as_json and as_csv:
        raise InputError("--json and --csv are two formats of the same output: give one of them")


def show(rows: list[dict[str, Any]], as_json: bool, as_csv: bool, formats: dict[str, str] | None = None) -> None:
    """Print rows as JSON, CSV or a table."""
    if as_json:
        print(json.dumps(rows, indent=1))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        from rich.console import Console
        from rich.table import Table

        grid = Table(*rows[0], box=None)
        for row in rows:
            grid.add_row(*(value_text(value, (formats or {}).get(name, "{}")) for name, value in row.items()))
        Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(grid)


def value_text(value: Any, pattern: str) -> str:
    """A cell of a printed table; nothing for None."""
    return "" if value is None else pattern.format(value)
