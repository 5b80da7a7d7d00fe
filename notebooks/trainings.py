"""Which trainings the papers' tables ask for, and how long they should take. For the Snakefile."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from srlib import papers, results, runs
from srlib.errors import InputError


def chosen(budget: str, slugs: str, tables: str, steps: int | None, shown: Collection[str] = ()) -> pd.DataFrame:
    """The papers' own rows, and those of tables of our own, each network once, though several tables have it: paper,
    model, run, and its training's steps, batch and patch. ``run`` is "safmn/main/x4" for a released network,
    "liif-edsr/main/any" for one for every scale, "safmn/3/w-se" for a row of an ablation.

    ``slugs`` names papers ("safmn ssiu"), ``tables`` tables ("safmn-3 ssiu-4"), each "all" or "none"; ``steps`` takes
    the place of the budget's; ``shown`` are runs of released networks that pages show: those that are no chosen rows
    follow, with ``row`` False. Raises InputError for an unknown name.
    """
    places = {slug: [*papers.tables(slug), *papers.read(slug, "rows").table] for slug in papers.all_papers()}
    known = {f"{slug}-{number}": (slug, number) for slug, numbers in places.items() for number in numbers}
    for text, names in ((slugs, papers.all_papers()), (tables, known)):
        if lost := set(text.split()) - {*names, "all", "none"}:
            raise InputError(f"unknown: {', '.join(sorted(lost))}; choose some of {' '.join(names)}")
    found = {}
    for name, (slug, number) in known.items():
        if not ({slug, "all"} & set(slugs.split()) and {name, "all"} & set(tables.split())):
            continue
        rows = [row for row in papers.rows(slug, number) if papers.paper(slug).own(number, row.label)]
        for row in rows:
            ablation = not row.released or any(one.baseline for one in rows)
            training = runs.training(row.model, budget, ablation=ablation, changes=row.train, steps=steps)
            main = f"main/x{row.scale}" if row.scale else "main/any"
            run = f"{row.model}/{number}/{row.slug}" if ablation else f"{row.model}/{main}"
            line = {"paper": slug, "model": row.model, "run": run, "row": True} | vars(training)
            found.setdefault((row.model, row.config, training), line)
    for run in sorted(set(shown) - {line["run"] for line in found.values()}):
        model = run.split("/")[0]
        line = {"paper": papers.of(model).slug, "model": model, "run": run, "row": False}
        found[run] = line | vars(runs.training(model, budget, steps=steps))
    return pd.DataFrame(list(found.values()))


def summary(left: Sequence[Any]) -> str:
    """How many trainings are left, and about how many hours each paper's take: from the seconds a step and LR pixel of
    recorded runs of the same model."""
    known = results.runs().query("precision == '32-true'")
    pace = (known.seconds / (known.steps * known.batch * known.patch**2)).groupby(known.model).median()
    frame = pd.DataFrame(left)
    frame["hours"] = frame.model.map(pace) * frame.steps * frame.batch * frame.patch**2 / 3600
    lines = [f"trainings left: {len(frame)}; hours of a CPU ({known.device.mode()[0]}), where a run of the same"]
    lines.append("model is recorded, scaled by steps, batch and patch; no run on a GPU is recorded:")
    for paper, each in frame.groupby("paper", sort=False):
        lines.append(f"  {paper}: {len(each)}, of which {each.hours.count()} should take {each.hours.sum():,.1f} hours")
    return "\n".join(lines)
