"""What the features of one 256x256 image cost over the bare forward passes of guided-diffusion's UNet (ADM).

    python experiments/benchmarks/diffusion_features.py                  # a quarter as wide as the published network
    python experiments/benchmarks/diffusion_features.py --width 256      # the published network; minutes on a CPU
    python experiments/benchmarks/diffusion_features.py --width 256 --device cuda --save FILE

Random weights in the published architecture (`configs/features/adm_256.yaml`), but `--width` of its 256 channels.
Features = `DiffusionFeatures.maps` at timesteps 50, 150, 250 of blocks 5, 8, 12, 17. Bare = the network on three noisy
images, outputs dropped. Seconds are medians, the two taking turns; on a CPU those of the processor, of all threads
together, which other programs hardly change. Memory is the peak above the weights: of the device
on a GPU, else anonymous memory, of a process for each (Linux).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from selection import PeakMemory

from adaptseg.networks import AdmFlags, DiffusionFeatures
from adaptseg.networks.adm import AdmUNet

OVERLAY = Path(__file__).parents[2] / "configs" / "features" / "adm_256.yaml"


def published(width: int, *, half: bool) -> AdmFlags:
    """The flags of the overlay for so many channels."""
    network = yaml.safe_load(OVERLAY.read_text())["model"]["init_args"]["network"]
    given = network["init_args"]["features"]["init_args"]["adm"]
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return replace(AdmFlags(**values), num_channels=width, num_head_channels=min(64, width), use_fp16=half)


def runs(file: str, flags: AdmFlags, device: str) -> dict[str, Callable[[], object]]:
    """The two ways, on one network."""
    features = DiffusionFeatures(file, adm=flags).to(device)
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)).to(device)
    steps = [torch.tensor([timestep], device=device) for timestep in features.timesteps]

    @torch.no_grad()
    def bare() -> None:
        for step in steps:
            features.unet(image, step)

    return {"features": lambda: features.maps(image), "bare": bare}


def seconds(ways: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name].append(clock() - began)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}  # the first one warms up


def peak_megabytes(file: str, flags: AdmFlags, device: str, way: str) -> float:
    call = runs(file, flags, device)[way]
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with PeakMemory() as memory:
        call()
    return memory.megabytes


def measure(width: int, half: bool, device: str, repeats: int) -> dict[str, Any]:
    flags = published(width, half=half)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "random.pt")
        network = AdmUNet(flags)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        torch.save(network.state_dict(), file)
        del network
        peaks: dict[str, float] = {}
        for way in ("features", "bare"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks[way] = pool.apply(peak_megabytes, (file, flags, device, way))
        taken = seconds(runs(file, flags, device), repeats, device)
    return {
        "width": width,
        "parameters": parameters,
        "half": half,
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": taken,
        "ratio": taken["features"] / taken["bare"],
        "peak_MB": peaks,
        "extra_MB": peaks["features"] - peaks["bare"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--width", type=int, default=64, help="num_channels, a multiple of 32; the published one is 256"
    )
    parser.add_argument("--half", action="store_true", help="the torso in float16 (on a CPU: its weights)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    row = measure(arguments.width, arguments.half, arguments.device, arguments.repeats)
    size = "the published width" if row["width"] == 256 else f"{row['width']} of the published 256 channels"
    print(f"{size}: {row['parameters'] / 1e6:.0f} million parameters, {row['device']}, {row['threads']} threads")
    for way in ("features", "bare"):
        print(f"{way:8s} {row['seconds'][way]:8.2f} s  peak above the weights {row['peak_MB'][way]:7.0f} MB")
    print(f"ratio {row['ratio']:.3f} (aim: at most 1.05); {row['extra_MB']:.0f} MB more (aim: at most 300)")
    if arguments.save:
        arguments.save.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
