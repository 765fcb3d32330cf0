"""Write the README's table of speed and memory from what the benchmarks saved.

python experiments/benchmarks/selection.py --save experiments/benchmarks/results/selection.json
python experiments/benchmarks/training_step.py --save experiments/benchmarks/results/training_step.json
python experiments/benchmarks/self_training_step.py --save experiments/benchmarks/results/self_training_step.json
python experiments/benchmarks/gbw.py --save experiments/benchmarks/results/gbw.json
python experiments/benchmarks/readme_table.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tables"))

from common import write_into_readme  # noqa: E402  (the scripts of experiments/ are no package)


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


def main() -> None:
    selection, step = (json.loads((HERE / "results" / f"{n}.json").read_text()) for n in ("selection", "training_step"))
    lines = ["| | measured | aim |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows(selection, step))]
    write_into_readme("speed", "\n".join(lines))


if __name__ == "__main__":
    main()
