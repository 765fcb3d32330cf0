"""The command line: what it needs, what it says when something is wrong, what it leaves behind."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked import RECIPE, Outcome, adaptseg, fit_flags
from PIL import Image
from tiny import tiny_flags

import adaptseg as package
from adaptseg.cli import VERBS

RUN = Path("runs") / RECIPE.stem / "seed0"


def without_pictures() -> None:
    from adaptseg.callbacks import panels

    panels._save = lambda trainer, figure, name: None
    panels._grid = lambda titles, rows: None
    panels._curve = lambda history, final: None


def one_line(done: Outcome) -> str:
    """The error of a command that refused: exit code 2 and exactly one line on stderr."""
    assert done.code == 2, done.err
    assert re.fullmatch(r"adaptseg: error: [^\n]+\n", done.err), done.err
    assert not re.search(r"Traceback|usage:|File \"|Error:", done.err)
    return done.err.removeprefix("adaptseg: error: ").strip()


# ---- help


def heavy_modules(*arguments: str) -> tuple[list[str], str]:
    """Which heavy packages a command imported, and what it printed: a real process."""
    code = (
        "import sys; from adaptseg.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'numpy', 'jsonargparse', 'PIL', 'wandb', 'matplotlib', 'rich', 'yaml'}; "
        "print('HEAVY', *sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    out, _, heavy = done.stdout.rpartition("HEAVY")
    return heavy.split(), out + done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], [], ["--version"], ["fitt"]])
def test_help_version_and_typos_need_no_torch(arguments: list[str]):
    heavy, said = heavy_modules(*arguments)
    assert heavy == []
    if arguments == ["--version"]:
        assert said.strip() == package.__version__
    elif arguments == ["fitt"]:
        verbs = "fit, validate, test, predict, job, data, export"
        assert said == f"adaptseg: error: unknown verb 'fitt'; one of {verbs} is expected (see adaptseg --help)\n"
    else:
        assert all(verb in said for verb in VERBS)


def test_the_installed_command_is_this_one():
    done = subprocess.run([sys.executable, "-m", "adaptseg.cli", "nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("adaptseg: error: unknown verb 'nope'")
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="adaptseg")
    assert script.value == "adaptseg.cli:main"


@pytest.mark.parametrize("topic", [["--help"], ["--data.help", "DomainPair"], ["--active.help", "CBDA"]])
def test_help_of_a_verb_and_of_classes(tmp_path: Path, topic: list[str]):
    done = adaptseg("fit", *topic, folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert {"--help": "--trainer.max_steps", "--data.help": "batch_size", "--active.help": "budget_unit"}[
        topic[0]
    ] in done.out


def test_print_config_is_a_config(tmp_path: Path):
    done = adaptseg("fit", "--config", str(RECIPE), "--active.budget", "0.07", "--print_config", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    config = yaml.safe_load(done.out)
    assert config["active"]["init_args"]["budget"] == 0.07
    assert config["trainer"]["max_steps"] == yaml.safe_load(RECIPE.read_text())["trainer"]["max_steps"]
    assert not (tmp_path / "runs").exists()
    (tmp_path / "again.yaml").write_text(done.out)
    again = adaptseg("fit", "--config", "again.yaml", "--print_config", folder=tmp_path)
    assert yaml.safe_load(again.out) == config


# ---- what is wrong is said in one line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--active.budgett", "0.1"], r"budgett"),
        (["--data.batchsize", "2"], r"batchsize"),
        pytest.param(["--trainer.max_step", "2"], r"trainer\.max_step", marks=pytest.mark.slow),
        pytest.param(["--optimizer", "adam"], r"optimizer", marks=pytest.mark.slow),
        (["--data.batch_size", "two"], r"data\.batch_size: Expected int. Got value: two"),
        (["--data.batch_size", "0"], r"data\.batch_size is 0; 1 or more is allowed"),
        (["--trainer.max_steps", "many"], r"trainer\.max_steps: .*many"),
        (["--active.score", "ripuu"], r"active\.score: Expected one of \['random', .*'ripu'.*\]\. Got value: ripuu"),
        (["--active.budget", "0"], r"active\.budget is 0(\.0)?; a fraction in \(0, 1\] is expected"),
        (["--active.budget", "1.5"], r"active\.budget is 1\.5; a fraction in \(0, 1\] is expected"),
        pytest.param(
            ["--active.budget", "1e-6"],
            r"active\.budget 1e-06 \(fraction\) leaves less than one region",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--active.schedule", "[0.5, 0.2]"],
            r"active\.schedule is \[0\.5, 0\.2\]; ascending",
            marks=pytest.mark.slow,
        ),
        (
            ["--active.schedule", "[0.5, 0.999]"],
            r"active\.schedule puts a round after step 8, but training ends at step 8",
        ),
        pytest.param(
            ["--active.schedule", "[0.3, 0.4]"],
            r"active\.schedule puts two rounds into one tick",
            marks=pytest.mark.slow,
        ),
        (["--trainer.max_steps", "-1"], r"trainer\.max_steps is -1; give the number of optimiser steps"),
        (["--seed_everything", "true"], r"seed: Expected int\. Got value: True"),
        (["--model.optimization.lr", "-1"], r"model\.optimization\.lr is -1(\.0)?; a positive number is expected"),
        pytest.param(
            ["--model.optimization.name", "lion"],
            r"model\.optimization\.name: Expected one of .*adam",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--model.network", "tiny.Nothing"], r"model.*tiny\.Nothing", marks=pytest.mark.slow),
        pytest.param(["--model.network", "DeepLab"], r"model.*DeepLab", marks=pytest.mark.slow),
        pytest.param(["--data.source", "Street"], r"data.*source.*Street", marks=pytest.mark.slow),
        (["--data.target.look", "rain"], r"data\.target\.look: Expected one of \['game'.*rain"),
        pytest.param(["--data.target.count", "0"], r"Streets: count is 0", marks=pytest.mark.slow),
        (
            ["--data.source", "null", "--model.consistency_weight", "0", "--model.source_colors", "{jitter: null}"],
            r"model\.source_colors changes images of data\.source, which is null",
        ),
        (["--model.init_from", "absent.ckpt"], r"absent\.ckpt does not exist"),
        (["--name"], r"--name: expected one argument"),
        pytest.param(["--fresh=yes"], r"--fresh", marks=pytest.mark.slow),
        (["--config"], r"--config needs the path of a YAML file"),
        (["--config", "absent.yaml"], r"config file absent\.yaml does not exist"),
        pytest.param(["stray"], r"stray", marks=pytest.mark.slow),
        (["--ckpt_path", "absent.ckpt"], r"absent\.ckpt"),
        pytest.param(["--trainer.strategy", "ddpp"], r"ddpp", marks=pytest.mark.slow),
        pytest.param(["--trainer.accelerator", "gpuu"], r"gpuu", marks=pytest.mark.slow),
        pytest.param(["--trainer.devices", "0"], r"devices", marks=pytest.mark.slow),
    ],
)
def test_wrong_flags(tmp_path: Path, flags: list[str], said: str):
    assert re.search(said, one_line(adaptseg(*fit_flags(*flags), folder=tmp_path)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [1, 2", r"config file mine\.yaml: .*line 1"),
        ("just words", r"config file mine\.yaml holds no mapping of keys"),
        ("", r"config file mine\.yaml holds no mapping of keys"),
        ("trainer: {max_steps: 8}", r"no `data:` and `model:` block is given; start from a recipe"),
        ("model: {class_path: Supervised, init_args: {network: tiny.TinySegmenter}}", r"no `data:` block is given"),
        ("model: {class_path: Nothing}", r"model.*Nothing"),
        ("model: {class_path: Supervised, init_args: {networks: 1}}", r"networks"),
        ("modle: {class_path: Supervised}", r"modle"),
        ("model: {class_path: CBDA}", r"model.*CBDA"),
        ("model: Supervised", r"model is 'Supervised'; a mapping"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str):
    (tmp_path / "mine.yaml").write_text(text)
    assert re.search(said, one_line(adaptseg("fit", "--config", "mine.yaml", folder=tmp_path)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_nothing_to_evaluate(tmp_path: Path, verb: str):
    flags = ["--config", str(RECIPE), *tiny_flags(steps=8)]
    said = one_line(adaptseg(verb, *flags, folder=tmp_path))
    last = f"{RUN}/checkpoints/last.ckpt"
    assert said == f"{last} does not exist: run `adaptseg fit` with the same --config first, or give --ckpt_path"
    assert "absent.ckpt" in one_line(adaptseg(verb, *flags, "--ckpt_path", "absent.ckpt", folder=tmp_path))
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 and no more")
    assert "broken.ckpt" in one_line(adaptseg(verb, *flags, "--ckpt_path", "broken.ckpt", folder=tmp_path))


# ---- broken data


def make_folder(root: Path) -> Path:
    """A data set of four scenes of two classes in the layout of `Folder`, and an overlay that reads it."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / "set" / name).mkdir(parents=True)
    for number in range(4):
        image, labels = rng.integers(0, 256, (32, 64, 3), np.uint8), rng.integers(0, 2, (32, 64)).astype(np.uint8)
        Image.fromarray(image).save(root / "set" / "images" / f"{number}.png")
        Image.fromarray(labels).save(root / "set" / "labels" / f"{number}.png")
    classes = [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [4, 5, 6]}]
    (root / "set" / "classes.yaml").write_text(yaml.safe_dump({"name": "two", "classes": classes}))
    scenes = {"class_path": "Folder", "init_args": {"root": "set", "classes": "classes.yaml"}}
    data = dict.fromkeys(("source", "target", "val"), scenes)
    pair = {"class_path": "DomainPair", "init_args": {**data, "workers": 0}}
    (root / "mine.yaml").write_text(yaml.safe_dump({"data": pair}))
    return root / "set"


FOLDER = [
    "fit", "--config", str(RECIPE), "--config", "mine.yaml", "--model.network", "tiny.TinySegmenter",
    "--trainer.max_steps", "4", "--trainer.accelerator", "cpu", "--active.schedule", "[0.25, 0.5]",
]  # fmt: skip


def unknown_class(data: Path) -> str:
    Image.fromarray(np.full((32, 64), 7, np.uint8)).save(data / "labels" / "2.png")
    return r"labels/2\.png: label ids 7 are unknown to class table 'two'"


def truncated_label(data: Path) -> str:
    path = data / "labels" / "1.png"
    path.write_bytes(path.read_bytes()[:90])
    return r"labels/1\.png is truncated or broken"


def truncated_image(data: Path) -> str:
    path = data / "images" / "3.png"
    path.write_bytes(path.read_bytes()[:2000])
    return r"images/3\.png is truncated or broken"


def other_size(data: Path) -> str:
    Image.fromarray(np.zeros((32, 60), np.uint8)).save(data / "labels" / "0.png")
    return r"labels/0\.png is 60x32 pixels, its image set/images/0\.png is 64x32"


def colour_label(data: Path) -> str:
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(data / "labels" / "0.png")
    return r"labels/0\.png has mode RGB; one channel of class ids"


def no_scene(data: Path) -> str:
    for path in (data / "images").iterdir():
        path.unlink()
    return r"set/images holds no scene; expected layout"


def missing_label(data: Path) -> str:
    (data / "labels" / "3.png").unlink()
    return r"1 of 4 scenes have no label file in set/labels: 3\.png"


def no_folder(data: Path) -> str:
    data.rename(data.with_name("elsewhere"))
    return r"folder set/images does not exist"


def empty_split(data: Path) -> str:
    (data / "train.txt").write_text("\n")
    overlay = data.parent / "mine.yaml"
    overlay.write_text(
        overlay.read_text().replace("classes: classes.yaml", "classes: classes.yaml\n        split: train.txt")
    )
    return r"split file set/train\.txt is empty"


def no_classes(data: Path) -> str:
    (data / "classes.yaml").unlink()
    return r"no class table at set/classes\.yaml"


def no_labels_for_the_oracle(data: Path) -> str:
    overlay = data.parent / "mine.yaml"
    config = yaml.safe_load(overlay.read_text())
    target = {**config["data"]["init_args"]["target"]}
    target["init_args"] = {**target["init_args"], "labels": None}
    config["data"]["init_args"]["target"] = target
    overlay.write_text(yaml.safe_dump(config))
    return r"the pool \(Folder\) has no ground truth to simulate the oracle with"


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])  # lost workers cost 5 s
@pytest.mark.parametrize("breakage", [unknown_class, truncated_label, truncated_image, other_size, colour_label])
def test_broken_files_in_the_training_process_and_in_a_worker(
    tmp_path: Path, breakage: Callable[[Path], str], workers: str
):
    said = breakage(make_folder(tmp_path))
    assert re.search(said, one_line(adaptseg(*FOLDER, "--data.workers", workers, folder=tmp_path)))


@pytest.mark.parametrize(
    "breakage", [no_scene, missing_label, no_folder, empty_split, no_classes, no_labels_for_the_oracle]
)
def test_broken_data_sets(tmp_path: Path, breakage: Callable[[Path], str]):
    said = breakage(make_folder(tmp_path))
    assert re.search(said, one_line(adaptseg(*FOLDER, folder=tmp_path)))


def test_a_sound_folder_trains(tmp_path: Path):
    make_folder(tmp_path)
    done = adaptseg(*FOLDER, folder=tmp_path, before=without_pictures)
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "runs" / f"{RECIPE.stem}+mine" / "seed0" / "result.json").is_file()


# ---- overlays and names


def config_of(tmp_path: Path, *arguments: str) -> dict:
    done = adaptseg("fit", *arguments, "--print_config", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    return yaml.safe_load(done.out)


def test_overlays(tmp_path: Path):
    recipe = ["--config", str(RECIPE)]
    target = "{class_path: Streets, init_args: {look: fog, split: train}}"
    (tmp_path / "data.yaml").write_text(f"data: {{class_path: DomainPair, init_args: {{target: {target}}}}}")
    data = config_of(tmp_path, *recipe, "--config", "data.yaml")["data"]["init_args"]
    assert data["target"]["init_args"]["look"] == "fog"
    assert data["source"] is None
    assert data["batch_size"] == 2  # the class's default: nothing of the recipe's block is left
    (tmp_path / "merge.yaml").write_text("active: {init_args: {epsilon: 0.5}}\ntrainer: {max_steps: 77}")
    merged = config_of(tmp_path, *recipe, "--config=merge.yaml")
    assert merged["active"]["init_args"]["epsilon"] == 0.5
    assert merged["active"]["init_args"]["budget"] == 0.2
    assert merged["trainer"]["max_steps"] == 77
    (tmp_path / "replace.yaml").write_text("active: {class_path: CBDA, init_args: {epsilon: 0.5}}")
    replaced = config_of(tmp_path, *recipe, "-c", "replace.yaml", "--active.radius", "2")["active"]["init_args"]
    assert (replaced["epsilon"], replaced["budget"], replaced["radius"]) == (0.5, 0.05, 2)
    (tmp_path / "none.yaml").write_text("active: null")
    assert config_of(tmp_path, *recipe, "--config", "none.yaml")["active"] is None
    (tmp_path / "model.yaml").write_text("model: {class_path: Denoising}")
    said = one_line(adaptseg("fit", *recipe, "--config", "model.yaml", folder=tmp_path))
    assert said.startswith(
        "model.yaml switches model.class_path from Supervised to Denoising; one file owns the whole model"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished run, pictures included, under names of our own, started by flags that override the recipe."""
    folder = tmp_path_factory.mktemp("run")
    flags = fit_flags("--active.budget", "0.1", "--runs", "mine", "--name", "first")
    return folder, adaptseg(*flags, folder=folder)


EVALUATE = [
    "--config", str(RECIPE), *tiny_flags(steps=8), "--data.tick", "2", "--active.budget", "0.1", "--runs", "mine",
    "--name", "first",
]  # fmt: skip


def test_a_run_leaves_everything_in_its_directory(run: tuple[Path, Outcome]):
    folder, done = run
    assert (done.code, done.err) == (0, "")
    place = folder / "mine" / RECIPE.stem / "first"
    assert {path.name for path in folder.iterdir()} == {"mine", "stdout", "stderr"}
    assert {path.name for path in place.iterdir()} >= {
        "config.yaml", "environment.json", "metrics.csv", "rounds.csv", "result.json", "labels", "pictures",
        "checkpoints",
    }  # fmt: skip
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    for picture in ("round_01", "round_02", "final", "curve"):
        assert np.asarray(Image.open(place / "pictures" / f"{picture}.png")).std() > 5
    with (place / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["spent"]) <= 0.1 * int(row["pool_pixels"]) for row in rows] == [True, True]
    assert int(rows[1]["spent"]) > 0.09 * int(rows[1]["pool_pixels"])
    config = yaml.safe_load((place / "config.yaml").read_text())
    assert config["active"]["init_args"]["budget"] == 0.1
    assert config["model"]["class_path"].endswith("Supervised")
    # What a person reads: a line per tick, a row per round, a table at the end, where things lie.
    assert "step 8/8" in done.out
    assert re.search(r"\n +round +step +bought px", done.out) or "round" in done.out
    assert re.search(r"\n +end +8 +", done.out)
    assert "IoU per class" in done.out
    assert f"finished. Everything lies in mine/{RECIPE.stem}/first:" in done.out


def test_environment_stamp(run: tuple[Path, Outcome]):
    folder, _ = run
    stamp = json.loads((folder / "mine" / RECIPE.stem / "first" / "environment.json").read_text())
    assert stamp["command"][:2] == ["adaptseg", "fit"]
    assert {"adaptseg", "torch", "lightning"} <= set(stamp["packages"])
    assert set(stamp["git"]) == {"commit", "dirty"}
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", stamp["started"])


@pytest.mark.parametrize(("verb", "name"), [("validate", "val"), ("test", "test")])
def test_evaluation_after_a_fit(run: tuple[Path, Outcome], verb: str, name: str):
    folder, _ = run
    done = adaptseg(verb, *EVALUATE, folder=folder)
    assert (done.code, done.err) == (0, "")
    place = folder / "mine" / RECIPE.stem / "first"
    scores = json.loads((place / f"{name}.json").read_text())
    assert 0 <= scores["worst"] <= scores["miou"] <= 1
    assert "IoU per class" in done.out
    if verb == "validate":  # the last state, which the fit validated at its end
        result = json.loads((place / "result.json").read_text())
        assert scores["iou"] == result["val"]["iou"]
        assert scores["miou"] == result["val"]["miou"]
    best = adaptseg(verb, *EVALUATE, "--ckpt_path", str(place / "checkpoints" / "best.ckpt"), folder=folder)
    assert (best.code, best.err) == (0, "")


def test_predictions_after_a_fit(run: tuple[Path, Outcome]):
    folder, _ = run
    place = folder / "mine" / RECIPE.stem / "first"
    done = adaptseg("predict", *EVALUATE, folder=folder)
    assert (done.code, done.err) == (0, "")
    plain = sorted(path.name for path in (place / "predictions").iterdir())
    assert plain == [f"street_test_{number:05d}.png" for number in range(4)]
    assert f"predictions lie in mine/{RECIPE.stem}/first/predictions" in done.out
    before = {name: (place / "predictions" / name).read_bytes() for name in plain}
    done = adaptseg("predict", *EVALUATE, "--certainty", folder=folder)
    assert (done.code, done.err) == (0, "")
    for name in plain:
        labels = np.asarray(Image.open(place / "predictions" / name))
        assert (labels.shape, labels.dtype) == ((32, 64), np.uint8)
        assert labels.max() < 19
        assert (place / "predictions" / name).read_bytes() == before[name]
        certainty = np.asarray(Image.open(place / "predictions" / name.replace(".png", ".certainty.png")))
        assert (certainty.shape, certainty.dtype) == ((32, 64), np.uint8)
        assert certainty.min() >= 100 / 19 - 1
        assert certainty.max() <= 100


def test_another_network_than_the_checkpoints_is_an_error_in_one_line(run: tuple[Path, Outcome]):
    folder, _ = run
    said = one_line(adaptseg("test", *EVALUATE, "--model.network.width", "16", folder=folder))
    assert "last.ckpt" in said


def test_class_names_need_no_module_paths(tmp_path: Path):
    """As a person writes them in YAML and as flags."""
    config = config_of(tmp_path, "--config", str(RECIPE), "--active", "CBDA", "--active.oracle", "NoisyGroundTruth",
                       "--active.oracle.error_rate", "0.1")  # fmt: skip
    assert config["active"]["class_path"].endswith("CBDA")
    assert config["active"]["init_args"]["oracle"]["class_path"].endswith("NoisyGroundTruth")
    assert "." not in yaml.safe_load(RECIPE.read_text())["active"]["class_path"]


def test_a_run_without_validation_or_acquisition_is_quiet(tmp_path: Path):
    (tmp_path / "none.yaml").write_text("active: null\n")
    flags = [*tiny_flags(steps=4), "--data.val", "null"]
    flags = [
        f for pair in zip(flags[::2], flags[1::2], strict=True) if not pair[0].startswith("--data.val.") for f in pair
    ]
    done = adaptseg("fit", "--config", str(RECIPE), "--config", "none.yaml", *flags, folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    place = tmp_path / "runs" / f"{RECIPE.stem}+none" / "seed0"
    assert json.loads((place / "result.json").read_text())["val"] is None
    assert not (place / "labels").exists()


def test_no_progress_bar(tmp_path: Path):
    flags = fit_flags("--trainer.enable_progress_bar", "false")
    done = adaptseg(*flags, folder=tmp_path, before=without_pictures)
    assert (done.code, done.err) == (0, "")
    assert len((tmp_path / RUN / "rounds.csv").read_text().splitlines()) == 3
    rounds = [row for row in (tmp_path / RUN / "metrics.csv").read_text().splitlines() if ",round/spent," in row]
    assert len(rounds) == 2


def test_a_sweep_agent_names_the_run(tmp_path: Path):
    environment = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "abc"}
    done = adaptseg(*fit_flags(), folder=tmp_path, before=without_pictures, environment=environment)
    assert done.code == 0
    assert (tmp_path / "runs" / RECIPE.stem / "seed0-abc" / "result.json").is_file()


# ---- Weights & Biases


@pytest.mark.slow
def test_wandb_offline_stays_inside_the_run_directory(tmp_path: Path):
    home = tmp_path / "home"
    environment = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(home), "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_CONFIG_DIR": str(home / "config"), "WANDB_DATA_DIR": str(home / "data"),
    }  # fmt: skip
    home.mkdir()
    done = adaptseg(*fit_flags("--wandb"), folder=tmp_path / "work", environment=environment, timeout=200)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"runs", "stdout", "stderr"}
    place = tmp_path / "work" / RUN
    (offline,) = (place / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    media = {re.sub(r"_\d+_[0-9a-f]+\.png$", "", path.name) for path in (offline / "files").rglob("*.png")}
    assert {"round_01", "round_02", "final", "curve"} <= media
    assert (place / "metrics.csv").is_file()
    # The same command again finds a finished run and starts no service.
    assert adaptseg(*fit_flags("--wandb"), folder=tmp_path / "work", environment=environment).code == 0
