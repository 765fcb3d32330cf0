"""`adaptseg data check` and `adaptseg data show`: look at the data of a recipe before anything is trained. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from adaptseg.data import Scenes
from adaptseg.data.check import SplitReport, as_ranges, findings, table_problems
from adaptseg.data.named import Evaluated, named
from adaptseg.data.sheet import contact_sheet, frequency_bars
from adaptseg.errors import AdaptSegError, of_ours
from adaptseg.options import OwnOptions
from adaptseg.parsing import START, Refusals, one_line
from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs

SPLITS: dict[str, Any] = {
    "source": Scenes | None,
    "target": Scenes | None,
    "val": Evaluated,
    "test": Evaluated,
    "predict": Scenes | None,
}
"""The readers of a domain pair, and what each may be given."""

MUST_BE_LABELLED = ("source", "val", "test")
WORTH = 32
"""Scenes that are worth the start of a process."""
SHOWN = 10
"""Problems printed for a split."""


def run(arguments: Sequence[str]) -> int:
    """`check` or `show` with its options; 0 = all is well, 1 = something is wrong with the data.

    Raises:
        AdaptSegError: the command or the recipe is wrong.
    """
    verb = arguments[0] if arguments else ""
    if verb not in ("check", "show"):
        raise AdaptSegError(f"unknown verb 'data {verb}'; data check or data show is expected (see adaptseg --help)")
    configs, rest = take_configs(arguments[1:])
    options, rest = _options(verb).parse_known_args(rest)
    block = merge_recipes([(str(path), load_recipe(path)) for path in configs]).get("data")
    if not isinstance(block, dict):
        raise AdaptSegError(f"no `data:` block is given; {START}")
    given = fill_root(block.get("init_args") or {}, options.root)
    parsed = _parsed(given, rest)
    if verb == "check":
        return check(parsed, workers=options.workers, images=options.images, output=options.output)
    show(parsed, count=options.count, output=options.output)
    return 0


def _options(verb: str) -> OwnOptions:
    parser = OwnOptions(prog=f"adaptseg data {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--root")
    if verb == "check":
        parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 16))
        parser.add_argument("--images", action="store_true")
        parser.add_argument("-o", "--output", type=Path, default=Path("class_frequencies.png"))
    else:
        parser.add_argument("-n", "--count", type=int, default=12)
        parser.add_argument("-o", "--output", type=Path, default=Path("sheet.png"))
    return parser


# ---- readers of a recipe


class Reader:
    """The readers of one split, not opened yet: opening one lists its files, which may fail."""

    def __init__(self, split: str, given: Any, flags: Sequence[str]) -> None:
        self._split = split
        self._parser = ArgumentParser(exit_on_error=False)
        self._parser.add_argument("--config", action="config")
        self._parser.add_argument(f"--data.{split}", type=SPLITS[split], default=None)
        text = yaml.safe_dump({"data": {split: given}}, sort_keys=False)  # the first of several sets is the main one
        try:
            self._config = self._parser.parse_args(["--config", text, *flags])
        except ArgumentError as error:
            raise AdaptSegError(one_line(str(error))) from error
        self.spec = yaml.safe_load(self._parser.dump(self._config, skip_validation=True))["data"][split]

    def open(self) -> dict[str, Scenes]:
        """Name -> scenes; a split of one set is called like the split, of several `val (name)`.

        Raises:
            AdaptSegError: the data set is not as it should be.
        """
        refusals = Refusals()
        watched = [(refusals.instantiate, Scenes, True)]
        try:
            made = self._parser.instantiate(self._config, instantiators=watched)["data"][self._split]
        except Exception as error:
            ours = of_ours(error) or refusals.first
            if ours is None:
                raise
            raise ours from error
        sets = named(made, f"data.{self._split}")
        return {self._split if len(sets) == 1 else f"{self._split} ({name})": s for name, s in sets.items()}


def _parsed(given: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Reader]:
    """The readers that a recipe names; splits that are read alike are one, called after all of them."""
    own: dict[str, list[str]] = {split: [] for split in SPLITS}
    waiting = iter(flags)
    for flag in waiting:
        parts = flag.removeprefix("--").partition("=")[0].split(".")
        if not flag.startswith("--data.") or parts[1] not in SPLITS:
            raise AdaptSegError(
                f"unknown option {flag}; --config, --root, -o, those of `adaptseg --help` and keys of the readers "
                f"(--data.{{{','.join(SPLITS)}}}...) are known"
            )
        own[parts[1]] += [flag] if "=" in flag else [flag, next(waiting, "")]
    readers = {split: Reader(split, given.get(split), own[split]) for split in SPLITS if given.get(split) or own[split]}
    readers = {split: reader for split, reader in readers.items() if reader.spec is not None}
    if not readers:
        raise AdaptSegError(f"the `data:` block names none of {', '.join(SPLITS)}; {START}")
    return readers


# ---- check


def check(readers: Mapping[str, Reader], *, workers: int, images: bool, output: Path) -> int:
    """Look at every scene, print what is there and what is wrong, draw the class frequencies."""
    if workers < 1:
        raise AdaptSegError(f"--workers is {workers}; 1 or more processes are expected")
    console = Console(soft_wrap=True)
    reports: dict[str, SplitReport] = {}
    seen: dict[str, str] = {}
    for split, reader in readers.items():
        text = yaml.safe_dump(reader.spec, sort_keys=False)
        if text in seen:
            console.print(f"{split} is read like {seen[text]}", highlight=False)
            continue
        seen[text] = split
        try:
            opened = reader.open()
        except AdaptSegError as error:
            reports[split] = SplitReport(problems=[str(error)])
            continue
        for name, scenes in opened.items():
            reports[name] = _looked_through(name, scenes, workers=workers, images=images, console=console)
            if split in MUST_BE_LABELLED and not scenes.labelled:
                reports[name].problems.insert(0, f"data.{name} has no labels")
    tables = [(name, report.class_table) for name, report in reports.items() if report.class_table]
    general = table_problems(tables)
    _print(console, reports, general, images=images)
    if tables and not general:
        counted = {name: report for name, report in reports.items() if report.counts.any()}
        _save(frequency_bars(tables[0][1].names, counted), output)
        console.print(f"class frequencies are drawn in {output}", highlight=False)
    return 1 if general or any(report.problems for report in reports.values()) else 0


def _looked_through(name: str, scenes: Scenes, *, workers: int, images: bool, console: Console) -> SplitReport:
    report = SplitReport(class_table=scenes.class_table)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        found = findings(scenes, workers=min(workers, -(-len(scenes.keys) // WORTH)), images=images)
        for finding in progress.track(found, total=len(scenes.keys), description=name):
            report.add(finding)
    return report


def _print(console: Console, reports: Mapping[str, SplitReport], general: Sequence[str], *, images: bool) -> None:
    table = Table(title="what is there", title_justify="left")
    for column in ("split", "scenes", "sizes", "train ids", "void", "wrong"):
        table.add_column(column, justify="left" if column in ("split", "sizes", "train ids") else "right")
    for name, report in reports.items():
        common = [
            f"{h}x{w}" + (f" ({n})" if len(report.sizes) > 1 else "") for (h, w), n in report.sizes.most_common(3)
        ]
        more = [f"{len(report.sizes) - 3} more"] if len(report.sizes) > 3 else []
        void = f"{100 * report.void_share:.1f}%" if report.counts.any() else ""
        values = as_ranges(report.values) or "no labels"
        wrong = str(len(report.problems)) if report.problems else ""
        table.add_row(name, f"{report.scenes:,}", ", ".join(common + more), values, void, wrong)
    console.print(table)
    counted = {name: report for name, report in reports.items() if report.counts.any()}
    if counted and not general:
        _print_classes(console, counted)
    for name, report in reports.items():
        for problem in report.problems[:SHOWN]:
            console.print(f"{name}: {problem}", style="red", highlight=False, markup=False)
        if len(report.problems) > SHOWN:
            console.print(f"{name}: {len(report.problems) - SHOWN} more like these", style="red", highlight=False)
    for problem in general:
        console.print(problem, style="red", highlight=False, markup=False)
    if not images:
        console.print("of images, the headers were read; --images decodes them", highlight=False)


def _print_classes(console: Console, reports: Mapping[str, SplitReport]) -> None:
    table = Table(title="share of labelled pixels, %", title_justify="left")
    table.add_column("class")
    for name in reports:
        table.add_column(name, justify="right")
    first = next(iter(reports.values())).class_table
    assert first is not None
    for train_id, class_name in enumerate(first.names):
        shares = [100 * report.frequencies[train_id] for report in reports.values()]
        table.add_row(class_name, *(f"{share:.3f}" if share else "absent" for share in shares))
    console.print(table)


# ---- show


def show(readers: Mapping[str, Reader], *, count: int, output: Path) -> None:
    """Write the contact sheet."""
    splits: dict[str, Scenes] = {}
    seen: set[str] = set()
    for reader in readers.values():
        text = yaml.safe_dump(reader.spec, sort_keys=False)
        if text not in seen:
            splits |= reader.open()
        seen.add(text)
    _save(contact_sheet(splits, count), output)
    Console(soft_wrap=True).print(f"{output}", highlight=False)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(path))
    except OSError as error:
        raise AdaptSegError(f"{path} cannot be written: {error.strerror}") from error
