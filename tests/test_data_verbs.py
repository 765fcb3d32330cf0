"""`adaptseg data check` and `data show`: what they say about good data, about each data set's traps, about commands."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from layouts import H, W, break_member, mapillary, pack, palette_labels, picture, save

from adaptseg.cli import main
from adaptseg.data.scenes import read_image
from adaptseg.recipes import load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"


def streets(look: str, split: str, count: int = 3) -> dict:
    return {"class_path": "Streets", "init_args": {"look": look, "split": split, "count": count, "size": [32, 64]}}


def written(folder: Path, **readers: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "DomainPair", "init_args": {**readers, "batch_size": 2}}}))
    return str(path)


def check(*arguments: str, output: Path) -> int:
    return main(["data", "check", *arguments, "--workers", "1", "-o", str(output)])


def test_good_data_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from adaptseg.cli import main; code = main(sys.argv[1:]); "
        "print('HEAVY', *sorted({'torch', 'lightning', 'wandb'} & set(sys.modules))); sys.exit(code)"
    )
    recipe = written(
        tmp_path, source=streets("game", "train", 4), target=streets("street", "train"),
        val={"clear": streets("street", "val"), "fog": streets("fog", "val")}, test=streets("street", "train"),
    )  # fmt: skip
    picture_ = tmp_path / "new" / "bars.png"
    command = ["data", "check", "--config", recipe, "--workers", "2", "--images", "-o", str(picture_)]
    command += ["--data.source.count", "2"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith("HEAVY")
    assert "test is read like target" in done.stdout
    assert "val (fog)" in done.stdout
    source = next(line for line in done.stdout.splitlines() if "source" in line and "32x64" in line)
    assert source.split("│")[2].strip() == "2"  # the flag, not the recipe
    assert read_image(picture_).shape[1] > 500


def test_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, source=streets("game", "train"), val=[streets("street", "val")], target=None)
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", "--config", recipe, "-n", "5", "-o", str(sheet)]) == 0
    assert read_image(sheet).std() > 10
    assert str(sheet) in capsys.readouterr().out


# ---- traps of the data sets: (recipe's source, what must be said)


def gta5(root: Path) -> tuple[dict, str]:
    save(root / "images/00001.png", picture())
    palette_labels(root / "labels/00001.png", np.full((H - 1, W), 7))
    return {"class_path": "GTA5", "init_args": {"root": str(root)}}, "00001.png is 8x5 pixels, its image is 8x6"


def synthia(root: Path) -> tuple[dict, str]:
    save(root / "RGB/0000000.png", picture())
    save(root / "GT/LABELS/0000000.png", picture())  # 8 bits a channel, as converted files have
    return {"class_path": "Synthia", "init_args": {"root": str(root)}}, "not three channels of 16 bits"


def cityscapes(root: Path) -> tuple[dict, str]:
    save(root / "leftImg8bit/train/a/a_1_leftImg8bit.png", picture())
    save(root / "gtFine/train/a/a_1_gtFine_labelTrainIds.png", np.zeros((H, W), np.uint8))
    reader = {"class_path": "Cityscapes", "init_args": {"root": str(root), "split": "train"}}
    return reader, "holds only *_gtFine_labelTrainIds.png; looked for the official *_gtFine_labelIds.png"


def missing_pair(root: Path) -> tuple[dict, str]:
    reader, _ = cityscapes(root)
    save(root / "leftImg8bit/train/a/a_2_leftImg8bit.png", picture())
    save(root / "gtFine/train/a/a_1_gtFine_labelIds.png", np.zeros((H, W), np.uint8))
    return reader, "1 of 2 scenes have no label file"


def vistas(root: Path) -> tuple[dict, str]:
    mapillary(root)
    palette_labels(root / "training/v1.2/labels/b2.png", np.full((H, W), 100))
    reader = {"class_path": "Mapillary", "init_args": {"root": str(root), "split": "train"}}
    return reader, "v1.2 has ids 0 to 65; if these labels are of v2.0, set version: v2.0"


def broken_member(root: Path) -> tuple[dict, str]:
    archive = pack(mapillary(root), root.with_suffix(".zip"))
    break_member(Path(archive), "training/v1.2/labels/b2.png")
    reader = {"class_path": "Mapillary", "init_args": {"root": archive, "split": "train"}}
    return reader, "member training/v1.2/labels/b2.png is broken"


def broken_archive(root: Path) -> tuple[dict, str]:
    archive = Path(pack(mapillary(root), root.with_suffix(".zip")))
    archive.write_bytes(archive.read_bytes()[:-30])
    assert not zipfile.is_zipfile(archive)
    reader = {"class_path": "Mapillary", "init_args": {"root": str(archive), "split": "train"}}
    return reader, "is no readable zip file"


TRAPS = [gta5, synthia, cityscapes, missing_pair, vistas, broken_member, broken_archive]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_each_trap_is_one_line_and_exit_code_1(
    tmp_path: Path, trap: Callable[[Path], tuple[dict, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    reader, message = trap(tmp_path / "set")
    recipe = written(tmp_path, source=reader, target=streets("street", "train"))
    assert check("--config", recipe, output=tmp_path / "bars.png") == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert sum(message in line for line in out.splitlines()) == 1, out
    assert any(line.startswith("source: ") and message in line for line in out.splitlines())
    assert "target" in out  # looked at all the same


def test_many_problems_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(13):
        save(tmp_path / "set/images/10k/val" / f"{number:02d}.jpg", picture())
        save(tmp_path / "set/labels/sem_seg/masks/val" / f"{number:02d}.png", np.full((H, W), 99, np.uint8))
    reader = {"class_path": "BDD100K", "init_args": {"root": str(tmp_path / "set"), "split": "val"}}
    assert check("--config", written(tmp_path, source=reader), output=tmp_path / "bars.png") == 1
    out = capsys.readouterr().out
    assert out.count("label ids 99 are unknown") == 10
    assert "source: 3 more like these" in out


def test_sets_that_do_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "camvid/701_StillsRaw_full/0006R0_1.png", picture())
    save(tmp_path / "camvid/LabeledApproved_full/0006R0_1_L.png", np.zeros((H, W, 3), np.uint8))
    camvid = {"class_path": "CamVidRaw", "init_args": {"root": str(tmp_path / "camvid")}}
    save(tmp_path / "city/leftImg8bit/test/a/a_1_leftImg8bit.png", picture())
    unlabelled = {"class_path": "Cityscapes", "init_args": {"root": str(tmp_path / "city"), "split": "test"}}
    recipe = written(tmp_path, source=streets("game", "train"), target=camvid, val=unlabelled)
    assert check("--config", recipe, output=tmp_path / "bars.png") == 1
    out = capsys.readouterr().out
    assert "data.target: class table 'camvid raw'" in out
    assert "val: data.val has no labels" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "unknown verb 'data '; data check or data show is expected"),
        (["data", "chekc"], "unknown verb 'data chekc'"),
        (["data", "check"], "no `data:` block is given; start from a recipe"),
        (["data", "check", "--config", "absent.yaml"], "config file absent.yaml does not exist"),
        (["data", "check", "--config", "RECIPE", "--trainer.max_steps", "3"], "unknown option --trainer.max_steps"),
        (["data", "check", "--config", "RECIPE", "--workers", "0"], "--workers is 0; 1 or more"),
        (["data", "check", "--config", "RECIPE", "--workers", "two"], "--workers: invalid int value: 'two'"),
        (["data", "check", "--config", "RECIPE", "--data.source.split", "tests"], "data.source"),
        (["data", "show", "--config", "RECIPE", "-n", "0"], "-n is 0; 1 or more"),
    ],
)
def test_wrong_commands_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, source=streets("game", "train"))
    assert main([recipe if word == "RECIPE" else word for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


OVERLAYS = sorted((CONFIGS / "data").glob("*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_can_be_checked(overlay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the data: every split is looked for where --root says, and none is there."""
    readers = [v for k, v in load_recipe(overlay)["data"]["init_args"].items() if k in ("source", "target") and v]
    assert check("--config", str(overlay), "--root", str(tmp_path / "none"), output=tmp_path / "bars.png") == 1
    out = capsys.readouterr().out
    assert out.count(str(tmp_path / "none")) >= len(readers)
