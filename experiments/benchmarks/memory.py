"""Peak memory and seconds of a training step per host and lever, for the table of RESULTS.md.

    python experiments/benchmarks/memory.py                              # recipes on Streets, CPU
    python experiments/benchmarks/memory.py --device cuda --published    # recipes of configs/paper/ at their crops
    python experiments/benchmarks/memory.py --print                      # only the table of what was measured

Each cell is `adaptseg fit` on a recipe for a few steps, without burn-in, in a process of its own; it is kept in
results/memory.json as soon as it is measured and not measured again. Seconds are the median step after the first,
loading apart; on a CPU those of the processor, of all threads together, which other programs hardly change: set
OMP_NUM_THREADS=1. On a CPU, memory is the highest sum of the bytes that torch allocates in the last step: activations
and gradients, not the weights and moments that are there before; no other program changes it. On a GPU it is the peak
of all that is allocated, as published logs count it. On Streets the batch is smaller than the recipe's, to take less
time; published recipes run at their crops and batch sizes, on rendered scenes and from random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from adaptseg import lightning_cli
from adaptseg.networks.encoders import make_encoder
from adaptseg.recipes import load_recipe, merge_recipes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tables"))

from common import REPOSITORY, write_table  # noqa: E402  (the scripts of experiments/ are no package)

RESULTS = HERE / "results" / "memory.json"
BATCH = 2
"""Images of each domain on Streets."""

HOSTS = {
    "source only": ("source_only", "ripu_source_only_gta5_to_cityscapes"),
    "DAFormer": ("daformer", "daformer_gta5_to_cityscapes"),
    "MIC": ("mic", "mic_daformer_gta5_to_cityscapes"),
    "HRDA": ("hrda", "hrda_gta5_to_cityscapes"),
    "MIC(HRDA)": ("mic_hrda", "mic_hrda_gta5_to_cityscapes"),
    "AdvEnt": ("advent", "advent_gta5_to_cityscapes"),
    "VFM-UDA": ("vfm_uda", "vfm_uda_large_gta5_to_cityscapes"),
    "DUDA, stage 1": ("duda_stage1", "duda/stage1/mic_daformer_gta5_to_cityscapes"),
}
"""Host -> its recipe on Streets, and its published one."""

LEVERS = {
    "as is": {},
    "checkpointing": {"model": {"init_args": {"acceleration": {"checkpoint_encoder": True}}}},
    "shared backward": {"model": {"init_args": {"acceleration": {"shared_backward": True}}}},
    "half the detail": {},  # see `with_lever`
    "bf16": {"trainer": {"precision": "bf16-mixed"}},
}
PUBLISHED = {"HRDA": "22,404 MB, 3.22 s"}
"""From the log of a training that a release comes with (TITAN RTX); GBW's specification, section 1.8."""


class StepWatch(Callback):
    """Writes peak memory in bytes and median seconds of a run's steps to a file.

    On a CPU the last step is traced for its allocations, and does not count in the seconds.
    """

    def __init__(self, save: str) -> None:
        self.save, self.seconds = Path(save), list[float]()
        self.trace = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_traced(trainer, trainer.global_step + 1):
            self.trace.__enter__()
        self.began = self._now(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        taken = self._now(pl_module) - self.began
        if self._is_traced(trainer, trainer.global_step):
            self.trace.__exit__(None, None, None)
        else:
            self.seconds.append(taken)
        if trainer.global_step == trainer.max_steps:
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else allocated(self.trace)
            self.save.write_text(json.dumps({"bytes": peak, "seconds": statistics.median(self.seconds[1:])}))

    def _is_traced(self, trainer: Trainer, step: int) -> bool:
        return step == trainer.max_steps and not torch.cuda.is_initialized()

    def _now(self, pl_module: LightningModule) -> float:
        if pl_module.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def allocated(trace: profile) -> int:
    """The highest sum of bytes allocated and not yet freed since the trace began."""
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def recipe_of(host: str, *, published: bool, steps: int, folder: Path) -> dict[str, Any]:
    """The host's recipe on rendered scenes, without burn-in, validation or anything from a hub."""
    stem = HOSTS[host][published]
    recipe = load_recipe(REPOSITORY / "configs" / ("paper" if published else "") / f"{stem}.yaml")
    data, arguments = recipe["data"]["init_args"], recipe["model"]["init_args"]
    domains, batch_size = {}, data["batch_size"] if published else BATCH
    for domain, look in (("source", "game"), ("target", "street")):
        size = data.get("crop") or data.get(f"{domain}_size") or (128, 256)
        streets = {"look": look, "split": "train", "count": 2 * batch_size, "size": list(size)}
        domains[domain] = {"class_path": "Streets", "init_args": streets}
    given = {**domains, "batch_size": batch_size, "workers": 0, "tick": steps}
    if "burn_in" in arguments:
        arguments["burn_in"] = 0.0
    _fill_weights(arguments, folder if "feature_distance" in arguments else None)
    trainer = {"max_steps": steps, "enable_progress_bar": False}
    return {"model": recipe["model"], "data": {"class_path": "DomainPair", "init_args": given}, "trainer": trainer}


def _fill_weights(block: Any, folder: Path | None) -> None:
    """Random weights for pre-trained ones: none, or files in a folder for methods that insist on some."""
    if not isinstance(block, dict):
        return
    for value in block.values():
        _fill_weights(value, folder)
    if block.get("weights") is True:
        block["weights"] = False
        if folder is not None:
            block["weights"] = str(folder / f"{block['encoder']}.pth")
            torch.save(make_encoder(block["encoder"], from_hub=False).state_dict(), block["weights"])


def with_lever(recipe: dict[str, Any], lever: str) -> dict[str, Any] | None:
    """The recipe with a lever pulled; None where there is none to pull."""
    arguments = recipe["model"]["init_args"]
    if lever == "shared backward" and recipe["model"]["class_path"] == "Supervised":
        return None
    if lever != "half the detail":
        return merge_recipes([("recipe", recipe), (lever, LEVERS[lever])])
    if arguments["network"]["class_path"] != "HRDA":
        return None
    network = {"detail": [side // 2 for side in arguments["network"]["init_args"]["detail"]]}
    change = {"model": {"init_args": {"network": {"init_args": network}}}}
    return merge_recipes([("recipe", recipe), (lever, change)])


def measured(host: str, lever: str, device: str, published: bool, steps: int) -> dict[str, Any] | None:
    """{bytes, seconds} of one cell; {} where memory does not suffice; None where the lever does not exist."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = with_lever(recipe_of(host, published=published, steps=steps, folder=folder), lever)
        if recipe is None:
            return None
        file, result = folder / "recipe.yaml", folder / "result.json"
        watch = {"class_path": "memory.StepWatch", "init_args": {"save": str(result)}}
        recipe["trainer"] |= {"accelerator": device, "devices": 1, "callbacks": [watch]}
        file.write_text(yaml.safe_dump(recipe))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                lightning_cli.run("fit", ["--config", str(file), "--folder", str(folder / "run")])
        except torch.OutOfMemoryError:
            return {}
        return json.loads(result.read_text())


def table(cells: dict[str, dict[str, dict[str, Any]]], *, published: bool) -> str:
    """A row for each host, a column for each lever; what was not measured stays empty."""
    titles = [*LEVERS, *(["published"] if published else [])]
    lines = [f"| peak MB, seconds per step | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for host in HOSTS:
        row = [_cell(cells.get(host, {}).get(lever)) for lever in LEVERS]
        row += [PUBLISHED.get(host, "")] if published else []
        lines.append(f"| {host} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['bytes'] / 1e6:,.0f} MB, {found['seconds']:.2f} s" if found else "out of memory"


def write_table(results: dict[str, Any]) -> None:
    parts = [f"{name}:\n\n{table(cells, published='published' in name)}" for name, cells in results.items()]
    write_table("memory", "\n\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--published", action="store_true", help="recipes of configs/paper/ at their crops")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--hosts", nargs="*", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--levers", nargs="*", choices=LEVERS, default=list(LEVERS))
    parser.add_argument("--print", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    place = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    section = f"{'published recipes' if arguments.published else 'recipes on Streets, 128x256'}, {place}"
    cells = results.setdefault(section, {})
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["adaptseg.lightning_cli"])  # once, instead of in each cell
    todo = [] if arguments.print else [(host, lever) for lever in arguments.levers for host in arguments.hosts]
    for host, lever in todo:
        if lever in cells.setdefault(host, {}):
            continue
        with processes.Pool(1) as pool:
            found = pool.apply(measured, (host, lever, arguments.device, arguments.published, arguments.steps))
        if found is not None:
            cells[host][lever] = found
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{host:14s} {lever:16s} {_cell(found)}", flush=True)
    write_table({name: cells for name, cells in results.items() if any(cells.values())})


if __name__ == "__main__":
    main()
