"""How many images the frozen network reads in a whole two-stage eDALD run, its cache empty at the start.

    python experiments/benchmarks/feature_passes.py --root DRIVING [--save .../results/feature_passes.json]

Ten rounds on CamVid at 128x128, as `experiments/tables/low_budget.py` runs them, but with an untrained denoiser of
few channels and few steps: how often features are read depends on neither. DRIVING holds camvid/ and classes.json.

Limit: three timesteps of one fixed and five fresh draws per training image, 18; three per evaluation image; and for at
most 37 images with new labels the same once more in each round after the first, since their local picks change.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DModel

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TIMESTEPS, DRAWS, ROUNDS = 3, 5, 10


def untrained(folder: Path) -> None:
    """A denoiser with the decoder blocks that the recipe reads."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4}
    UNet2DModel(128, block_out_channels=(8,) * 4, norm_num_groups=4, add_attention=False, **blocks).save_pretrained(
        folder
    )


def forwards(root: str, folder: Path) -> int:
    """Those of one run, as it prints them."""
    untrained(folder / "unet")
    configs = [CONFIGS / "edald.yaml", CONFIGS / "data" / "camvid_128.yaml", CONFIGS / "active" / "edald.yaml"]
    command = [sys.executable, "-m", "adaptseg.cli", "fit"]
    command += [word for file in configs for word in ("--config", str(file))]
    command += ["--root", root, "--model.network.features.unet", str(folder / "unet"), "--active.candidates", "500"]
    command += ["--active.local_picks", "10", "--model.norm_pixels", "32", "--trainer.max_steps", "100"]
    command += ["--data.tick", "10"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = re.search(r"has read in this process: ([\d,]+)", done.stdout)
    if found is None:
        sys.exit(done.stdout + done.stderr)
    return int(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    root = Path(arguments.root).resolve()
    images, judged = (
        len((root / "camvid" / "splits" / f"{name}.txt").read_text().split()) for name in ("train", "val")
    )
    per_image = TIMESTEPS * (1 + DRAWS)
    again = (ROUNDS - 1) * min(images, round(images / ROUNDS)) * per_image
    row = {"images": images, "judged": judged, "limit": images * per_image + judged * TIMESTEPS + again, "again": again}
    with tempfile.TemporaryDirectory() as folder:
        row["forwards"] = forwards(str(root), Path(folder))
    print(f"{row['forwards']:,} passes; at most {row['limit']:,}, of them {again:,} for images with new labels")
    if arguments.save:
        arguments.save.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
