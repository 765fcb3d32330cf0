"""Write RESULTS.md's table of speed and memory from what the benchmarks saved.

    python experiments/benchmarks/NAME.py --save experiments/benchmarks/results/NAME.json
    python experiments/benchmarks/speed_table.py

NAME: selection, scores, scoring_processes, training_step, self_training_step, gbw, hrda_step, duda_step, herding,
feature_passes (with --root DRIVING), diffusion_features (with --width 256), data_check. What was not measured has no
line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tables"))

from common import write_table  # noqa: E402  (the scripts of experiments/ are no package)


def rows(selection: dict[str, Any], step: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    ratios = [region["ratio"] for region in selection["regions"]]
    pool = {(run["field"], run["maps"]): run for run in selection["pool"]}
    fields = list(dict.fromkeys(field for field, _ in pool))
    peaks = [max(pool[field, maps]["peak_MB"] for field in fields) for maps in (100, 200)]
    seconds = {key: run["add_ms"] + run["finish_ms"] for key, run in pool.items()}
    growth = " / ".join(f"{seconds[field, 200] / seconds[field, 100]:.1f}" for field in fields)
    ripu = step["with RIPU's losses"]
    passes = " / ".join(f"{step[f'pipeline, {name}']['ratio']:.1f}" for name in ("rendering", "cached"))
    return [
        (
            "`select_regions`, 1024x2048, 2,331 picks, radius 2: times as fast as the single-argmax loop",
            f"{min(ratios):.0f} to {max(ratios):.0f}",
            "at least 30",
        ),
        (
            "20 % of 100 / 200 maps of 1024x2048: peak anonymous memory above start, MB",
            " / ".join(f"{peak:.0f}" for peak in peaks),
            "under 400 / 420",
        ),
        (f"the same, seconds per map, 200 over 100 maps: {' / '.join(fields)}", growth, "at most 1.5"),
        (
            "training step over the bare passes, cross-entropy only",
            f"{step['cross-entropy']['ratio']:.2f}",
            "at most 1.10",
        ),
        (
            "training step over the bare passes, with RIPU's losses",
            f"{ripu['ratio']:.2f}",
            "at most 1.25",
        ),
        ("input pipeline over the step's need, per worker: first pass (renders) / later", passes, "at least 2"),
    ]


def score_rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    ratios = " / ".join(f"{scores[name]['ratio']:.1f}" for name in ("region, radius 1", "pixel, radius 32"))
    return [("RIPU's score of 19x1024x2048, RA / PA, over the softmax of the same map", ratios, "at most 3")]


def self_training_rows(step: dict[str, Any], gbw: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    plain, mic, weighted = (step[name] for name in ("DACS or DAFormer", "MIC", "MIC with GBW"))
    memory = max(row["memory_ratio"] for row in step.values())
    shares = gbw["share_of_step"]
    return [
        ("self-training step over its bare passes, DACS or DAFormer", f"{plain['ratio']:.2f}", "at most 1.10"),
        (
            "the same, MIC / MIC with GBW",
            f"{mic['ratio']:.2f} / {weighted['ratio']:.2f}",
            "at most 1.15",
        ),
        ("the same, peak memory, the largest of the three", f"{memory:.2f}", "at most 1.2"),
        (
            "GBW (channel), share of the bare passes of DAFormer / MIC, %",
            " / ".join(f"{100 * shares[host]['channel']:.1f}" for host in ("DAFormer", "MIC")),
            "at most 3",
        ),
        ("GBW in closed form, times as fast as SLSQP", f"{gbw['solvers']['ratio']:.0f}", "at least 10"),
    ]


def hrda_rows(step: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    ratios = " / ".join(f"{step[name]['ratio']:.2f}" for name in ("HRDA", "MIC on HRDA"))
    return [
        ("self-training step over its bare passes, HRDA / MIC on HRDA", ratios, "at most 1.15"),
        ("HRDA's windowed inference over its bare windows", f"{step['inference']['ratio']:.2f}", "at most 1.1"),
    ]


def herding_rows(herding: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    plain, memory = herding["plain"], herding["memory"]
    same = "the same" if plain["same"] else "OTHER"
    return [
        (
            f"exact herding, n = {plain['n']:,}, {plain['picks']:,} picks ({same} indices): times as fast as the plain "
            "loop with a stored kernel",
            f"{plain['ratio']:.0f}",
            "at least 8",
        ),
        ("the same, kernel rows computed, in n", f"{plain['kernel_rows_over_n']:.1f}", "at most 8"),
        ("herding half of n points: exponent of n in the time", f"{herding['growth']['exponent']:.2f}", ""),
        (
            f"herding at n = {memory['n']:,}, D = {memory['channels']}: peak memory above start, GB",
            f"{memory['extra_GB']:.2f}",
            "under 1.5",
        ),
    ]


def feature_rows(passes: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    return [
        (
            f"passes of the frozen network in ten rounds on {passes['images']} images, judged on {passes['judged']}",
            f"{passes['forwards']:,}",
            f"at most {passes['limit']:,}",
        )
    ]


def unet_rows(unet: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    what = f"features of a 256x256 image from ADM's UNet of {unet['parameters'] / 1e6:.0f} million parameters"
    return [
        (f"{what}, over its bare passes", f"{unet['ratio']:.2f}", "at most 1.05"),
        ("the same, peak memory over the passes', MB", f"{unet['extra_MB']:.0f}", "at most 300"),
    ]


def duda_rows(step: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    ratios = " / ".join(f"{step[name]['ratio']:.2f}" for name in ("DUDA on DAFormer", "DUDA on MIC"))
    return [
        ("DUDA's step over its bare passes, on DAFormer / MIC", ratios, "at most 1.15"),
        ("measuring inconsistency over inference of both networks", f"{step['measuring']['ratio']:.2f}", "at most 1.1"),
    ]


def label_file_rows(check: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    cases = [check["cases"][name] for name in ("scenes", "coarse", "ragged", "palette")]
    return [
        (
            "label files of 1024x2048 that `data check` reads a second and core: grey (scenes / blocks / ragged) / "
            "palette",
            " / ".join(f"{case['files_per_second']:.0f}" for case in cases),
            "at least 200",
        ),
        (
            f"the same files, Pillow's bare decoding with zlib {check['zlib of Pillow']}",
            " / ".join(f"{case['pillow_files_per_second']:.0f}" for case in cases),
            "",
        ),
    ]


def process_rows(scoring: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, aim) per line."""
    return [
        ("scoring the pool with two processes: times as fast as with one", f"{scoring['ratio']:.2f}", "at least 1.6")
    ]


TABLE: dict[Callable[..., list[tuple[str, str, str]]], tuple[str, ...]] = {
    rows: ("selection", "training_step"),
    score_rows: ("scores",),
    process_rows: ("scoring_processes",),
    self_training_rows: ("self_training_step", "gbw"),
    hrda_rows: ("hrda_step",),
    duda_rows: ("duda_step",),
    herding_rows: ("herding",),
    feature_rows: ("feature_passes",),
    unet_rows: ("diffusion_features",),
    label_file_rows: ("data_check",),
}
"""Lines -> the results that they are made from; without those there are none."""


def main() -> None:
    lines = ["| | measured | aim |", "|---|---|---|"]
    for make, names in TABLE.items():
        files = [HERE / "results" / f"{name}.json" for name in names]
        if missing := [file.name for file in files if not file.exists()]:
            print(f"not measured yet: {', '.join(missing)}")
            continue
        lines += [f"| {' | '.join(row)} |" for row in make(*(json.loads(file.read_text()) for file in files))]
    write_table("speed", "\n".join(lines))


if __name__ == "__main__":
    main()
