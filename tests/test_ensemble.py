"""Ensemble-distillation from end to end, and its jobs with members of every kind, good and bad."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_resume import _die_in
from test_stages import CONFIGS, Commands
from tiny import TinySegmenter, tiny_network

from adaptseg import staged_run
from adaptseg.classes import CITYSCAPES
from adaptseg.cli import main
from adaptseg.data import DomainPair, Streets
from adaptseg.data.label_folder import write_map
from adaptseg.ensemble import ChoosePolicy, CompareMembers, Exported, Fuse, OraclePolicy, Predictions, PredictMember
from adaptseg.ensemble.members import Member, Prediction
from adaptseg.ensemble.policy import read_policy
from adaptseg.ensemble.report import agreement_counts, opinions
from adaptseg.ensemble.store import MemberMaps
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace
from adaptseg.losses.fusion import channel_fusion
from adaptseg.stages import read_stages

SIZE = (32, 64)


@pytest.fixture
def data() -> DomainPair:
    return DomainPair(target=Streets("street", "train", count=3, size=SIZE), workers=0)


def at(folder: Path, data: DomainPair | None) -> Workplace:
    folder.mkdir(parents=True, exist_ok=True)
    return Workplace(folder, data, torch.device("cpu"), 0)


class Noisy(Member):
    """The truth, with a share of the pixels replaced; as certain as it is right."""

    def __init__(self, seed: int, right: float) -> None:
        self.seed, self.right = seed, right

    def class_table(self, data: DomainPair) -> Any:
        return data.class_table

    def predict(self, data: DomainPair, keys: Any, device: Any) -> Iterator[Prediction]:
        for key in keys:
            rng = np.random.default_rng([self.seed, int(key[-5:])])
            wrong = rng.random(SIZE) > self.right
            labels = np.where(wrong, rng.integers(19, size=SIZE), data.pool.labels(key)).astype(np.uint8)
            labels[labels == 255] = 0
            yield Prediction(key, labels, rng.integers(50, 101, size=SIZE).astype(np.uint8))


def members(folder: Path, data: DomainPair, **right: float) -> list[str]:
    for seed, (name, share) in enumerate(right.items()):
        PredictMember(name, Noisy(seed, share)).run(at(folder / name, data))
    return [str(folder / name) for name in right]


def measured(folder: Path, data: DomainPair, **rows: dict[str, tuple[float | None, int]]) -> list[str]:
    """Certainty files as MeasureCertainty leaves them: classes not named are (0.5, 100 pixels)."""
    for name, row in rows.items():
        cells = {n: row.get(n, (0.5, 100)) for n in data.class_table.names}
        content = {"name": name, "classes": {n: {"certainty": c, "pixels": p} for n, (c, p) in cells.items()}}
        (folder / name).mkdir(parents=True)
        (folder / name / "certainty.json").write_text(json.dumps(content))
    return [str(folder / name) for name in rows]


# ---- members


def test_members_of_other_classes_are_mapped_by_name(tmp_path: Path, data: DomainPair) -> None:
    table = tmp_path / "classes.yaml"
    rows = [{"name": n, "color": [0, 0, 0], "raw_ids": [i]} for i, n in ((40, "car"), (41, "cow"), (42, "road"))]
    table.write_text(yaml.safe_dump({"name": "other", "classes": rows, "void_ids": [0]}))
    for key in data.pool.keys:
        ids = np.full(SIZE, 40, np.uint8)
        ids[:4], ids[4:8], ids[8:12] = 41, 42, 0
        write_map(tmp_path / "given" / f"{key}.png", ids)
    PredictMember("other", Predictions(str(tmp_path / "given"), classes=str(table))).run(at(tmp_path / "m", data))
    maps = MemberMaps.open(tmp_path / "m", data)
    assert maps.classes == ("road", "car")
    labels = maps.labels(data.pool.keys[0])
    names = data.class_table.names
    assert (labels[:4] == 255).all()
    assert (labels[4:8] == names.index("road")).all()
    assert (labels[8:12] == 255).all()
    assert (labels[12:] == names.index("car")).all()
    assert (maps.certainty(data.pool.keys[0]) == 1).all()
    manual = dict.fromkeys(names, "other") | dict.fromkeys(set(names) - {"road", "car"})
    ChoosePolicy([str(tmp_path / "m")], manual=manual).run(at(tmp_path / "p", data))
    with pytest.raises(AdaptSegError, match="member 'other' does not have class 'sky'"):
        ChoosePolicy([str(tmp_path / "m")], manual={**manual, "sky": "other"}).run(at(tmp_path / "q", data))


class LogitsOnly(torch.nn.Module):
    def __init__(self, network: TinySegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).logits


def test_a_checkpoint_and_its_export_say_the_same(tmp_path: Path, data: DomainPair) -> None:
    from adaptseg import networks

    network = tiny_network(19)
    state = {f"student.{name}": value for name, value in network.state_dict().items()}
    entry = networks.describe({"student": ("student.", network)}, data.class_table, (0.5,) * 3, (0.5,) * 3)
    torch.save({"adaptseg": entry, "state_dict": state}, tmp_path / "x.ckpt")
    exported = torch.export.export(LogitsOnly(network).eval(), (torch.zeros(1, 3, *SIZE),))
    torch.export.save(exported, tmp_path / "x.pt2")
    from adaptseg.ensemble import Trained

    PredictMember("a", Trained(str(tmp_path / "x.ckpt"))).run(at(tmp_path / "a", data))
    PredictMember("b", Exported(str(tmp_path / "x.pt2"))).run(at(tmp_path / "b", data))
    a, b = (MemberMaps.open(tmp_path / name, data) for name in "ab")
    for key in data.pool.keys:
        np.testing.assert_array_equal(a.labels(key), b.labels(key))
        np.testing.assert_array_equal(a.certainty(key), b.certainty(key))
    (tmp_path / "y.pt2").write_bytes(b"nothing")
    with pytest.raises(AdaptSegError, match="no model that torch"):
        Exported(str(tmp_path / "y.pt2"))


def test_a_killed_prediction_goes_on_and_what_is_there_stays(tmp_path: Path, data: DomainPair) -> None:
    place = at(tmp_path / "m", data)
    PredictMember("m", Noisy(0, 0.9)).run(place)
    before = {f.name: f.read_bytes() for f in (place.folder / "predictions").iterdir()}
    first, second, _ = data.pool.keys
    (place.folder / "predictions" / f"{second}.png").unlink()  # killed between certainty and label map
    stamp = (place.folder / "predictions" / f"{first}.png").stat().st_mtime_ns
    PredictMember("m", Noisy(0, 0.9)).run(place)
    assert {f.name: f.read_bytes() for f in (place.folder / "predictions").iterdir()} == before
    assert (place.folder / "predictions" / f"{first}.png").stat().st_mtime_ns == stamp


def spoil(kind: str, folder: Path, key: str) -> None:
    path = folder / f"{key}.png"
    if kind == "missing":
        path.unlink()
    elif kind == "corrupt":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "size":
        write_map(path, np.zeros((16, 32), np.uint8))
    elif kind == "ids":
        write_map(path, np.full(SIZE, 19, np.uint8))
    elif kind == "colour":
        Image.new("RGB", SIZE[::-1]).save(path)
    elif kind == "deep":
        Image.fromarray(np.zeros(SIZE, np.uint16)).save(path)
    elif kind == "half rated":
        write_map(folder / f"{key}.certainty.png", np.zeros(SIZE, np.uint8))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "1 of 3 scenes have no label file in .*: street_train_00001.png"),
        ("corrupt", "street_train_00001.png is truncated or broken"),
        ("size", "street_train_00001.png is 16x32, its scene 32x64; members label scenes at native size"),
        ("ids", "holds ids 19; class table 'streets' has train ids 0 to 18"),
        ("colour", "one channel of class ids is expected"),
        ("deep", "8 bits is expected"),
        ("half rated", r"1 certainty maps for 3 scenes \(street_train_00000.certainty.png is missing\)"),
    ],
)
def test_bad_predictions_are_named(tmp_path: Path, data: DomainPair, kind: str, said: str) -> None:
    for key in data.pool.keys:
        write_map(tmp_path / "g" / f"{key}.png", np.zeros(SIZE, np.uint8))
    spoil(kind, tmp_path / "g", data.pool.keys[1])
    with pytest.raises(AdaptSegError, match=said):
        PredictMember("g", Predictions(str(tmp_path / "g"))).run(at(tmp_path / "m", data))
    assert not (tmp_path / "m" / "member.json").exists()


# ---- policies


def test_policy_takes_the_most_certain_and_guards(
    tmp_path: Path, data: DomainPair, capsys: pytest.CaptureFixture[str]
) -> None:
    given = members(tmp_path, data, a=0.9, b=0.8)
    # b's student is surest of the road, but of one pixel; nobody's student gives a train; order of files is no matter.
    rows = measured(
        tmp_path / "c", data,
        b={"road": (0.99, 1), "sky": (0.8, 500), "train": (None, 0)}, a={"sky": (0.7, 500), "train": (None, 0)},
    )  # fmt: skip
    job = ChoosePolicy(given, measured=rows, minimum_share=1e-3, missing="nobody")
    job.run(at(tmp_path / "p", data))
    policy = read_policy(tmp_path / "p")
    assert (policy.chosen["road"], policy.chosen["sky"], policy.chosen["train"]) == ("a", "b", None)
    assert policy.kind == "certainty"
    said = capsys.readouterr().out
    assert "(99.0)" in said
    assert "no member is chosen for train: these classes get no labels" in said
    with pytest.raises(AdaptSegError, match="no member can be chosen for train: none predicts them"):
        ChoosePolicy(given, measured=rows).run(at(tmp_path / "q", data))
    with pytest.raises(AdaptSegError, match="students of a, b are measured, members are a"):
        ChoosePolicy(given[:1], measured=rows).run(at(tmp_path / "q", data))
    nothing = measured(tmp_path / "n", data, a=(none := dict.fromkeys(data.class_table.names, (None, 0))), b=none)
    with pytest.raises(AdaptSegError, match="no student is certain of any class"):
        ChoosePolicy(given, measured=nothing).run(at(tmp_path / "q", data))
    with pytest.raises(AdaptSegError, match="two members are named 'a'"):
        ChoosePolicy([given[0], given[0]], measured=rows).run(at(tmp_path / "q", data))
    assert not (tmp_path / "q" / "policy.json").exists()


def test_manual_policy_must_cover_and_name_what_there_is(tmp_path: Path, data: DomainPair) -> None:
    given = members(tmp_path, data, a=0.9)
    whole: dict[str, str | None] = dict.fromkeys(data.class_table.names, "a")
    for wrong, said in (
        ({n: m for n, m in whole.items() if n != "sky"}, "does not cover sky"),
        ({**whole, "sky": "z"}, "names member 'z'; there are a"),
        ({**whole, "cow": "a"}, "classes that there are not: cow"),
    ):
        with pytest.raises(AdaptSegError, match=said):
            ChoosePolicy(given, manual=wrong).run(at(tmp_path / "p", data))
    with pytest.raises(AdaptSegError, match="give one of them"):
        ChoosePolicy(given)
    ChoosePolicy(given, manual=whole).run(at(tmp_path / "p", data))
    assert read_policy(tmp_path / "p").title == "manual"


def test_oracle_is_marked_in_every_output(tmp_path: Path, data: DomainPair, capsys: pytest.CaptureFixture[str]) -> None:
    given = members(tmp_path, data, bad=0.2, good=0.95)
    OraclePolicy(given).run(at(tmp_path / "p", data))
    chosen = read_policy(tmp_path / "p").chosen
    assert set(chosen.values()) <= {"good", None}
    Fuse(given, policy=str(tmp_path / "p")).run(at(tmp_path / "f", data))
    CompareMembers(given, fused=str(tmp_path / "f"), policy=str(tmp_path / "p"), scenes=1).run(at(tmp_path / "r", data))
    said = capsys.readouterr().out
    assert said.count("oracle (reads the truth: for analysis only)") >= 2
    for name in ("p/policy.json", "f/fusion.json"):
        assert "oracle (reads the truth" in (tmp_path / name).read_text()
    assert not (tmp_path / "f" / "labels").exists()
    assert len(list((tmp_path / "f" / "oracle_labels").iterdir())) == 3


# ---- fusion


def test_fused_maps_are_those_of_the_pure_function(tmp_path: Path, data: DomainPair) -> None:
    """From one-hot probabilities as high as the certainty: what the compact maps say is all that there is."""
    given = members(tmp_path, data, a=0.9, b=0.7, c=0.5)
    names = data.class_table.names
    manual = {name: "abc"[i % 3] for i, name in enumerate(names)}
    ChoosePolicy(given, manual=manual).run(at(tmp_path / "p", data))
    Fuse(given[::-1], policy=str(tmp_path / "p"), thresholds={"road": 0.6}).run(at(tmp_path / "f", data))
    threshold = torch.full((19,), 0.9)
    threshold[0] = 0.6
    maps = [MemberMaps.open(path, data) for path in given]
    kinds = np.zeros(3)
    for key in data.pool.keys:
        q = torch.zeros(3, 19, *SIZE)
        for t, member in enumerate(maps):
            labels = torch.from_numpy(member.labels(key)).long()
            q[t].scatter_(0, labels[None], torch.from_numpy(member.certainty(key))[None])
        expected = channel_fusion(q, torch.tensor([i % 3 for i in range(19)]), threshold=threshold)
        fused = np.asarray(Image.open(tmp_path / "f" / "labels" / f"{key}.png"))
        np.testing.assert_array_equal(fused, expected)
        claims = sum((q[c % 3].argmax(0) == c).long() for c in range(19))
        kinds += torch.bincount(torch.as_tensor(claims).clamp(max=2).flatten(), minlength=3).numpy()
    shares = json.loads((tmp_path / "f" / "fusion.json").read_text())["claims"]
    np.testing.assert_allclose([shares[k]["share"] for k in ("none", "one", "several")], kinds / kinds.sum())


def test_a_member_that_is_not_chosen_changes_nothing(tmp_path: Path, data: DomainPair) -> None:
    given = members(tmp_path, data, a=0.9, b=0.7, weak=0.1)
    manual = {name: "ab"[i % 2] for i, name in enumerate(data.class_table.names)}
    ChoosePolicy(given, manual=manual).run(at(tmp_path / "p", data))
    for name, some in (("f", given), ("g", given[:2])):
        Fuse(some, policy=str(tmp_path / "p")).run(at(tmp_path / name, data))
    assert staged_run.content_of(tmp_path / "f" / "labels") == staged_run.content_of(tmp_path / "g" / "labels")


def test_one_member_alone_is_filtered_by_its_certainty_and_votes_for_itself(tmp_path: Path, data: DomainPair) -> None:
    given = members(tmp_path, data, a=0.9)
    ChoosePolicy(given, manual=dict.fromkeys(data.class_table.names, "a")).run(at(tmp_path / "p", data))
    Fuse(given, policy=str(tmp_path / "p")).run(at(tmp_path / "f", data))
    Fuse(given, rule="vote").run(at(tmp_path / "v", data))
    maps, key = MemberMaps.open(given[0], data), data.pool.keys[0]
    fused, vote = (np.asarray(Image.open(tmp_path / n / "labels" / f"{key}.png")) for n in "fv")
    np.testing.assert_array_equal(fused, np.where(maps.certainty(key) >= np.float32(0.9), maps.labels(key), 255))
    np.testing.assert_array_equal(vote, maps.labels(key))
    with pytest.raises(AdaptSegError, match="channel needs a policy, a vote has none"):
        Fuse(given, policy="p", rule="vote")
    with pytest.raises(AdaptSegError, match="thresholds names cow"):
        Fuse(given, policy=str(tmp_path / "p"), thresholds={"cow": 1}).run(at(tmp_path / "f", data))


def test_agreement_and_opinions_against_loops() -> None:
    labels = np.random.default_rng(0).integers(0, 4, size=(3, 5, 6)).astype(np.uint8)
    labels[labels == 3] = 255
    same, both = agreement_counts(labels)
    many = opinions(labels)
    for a, b in np.ndindex(3, 3):
        pairs = [(x, y) for x, y in zip(labels[a].ravel(), labels[b].ravel(), strict=True) if 255 not in (x, y)]
        assert (same[a, b], both[a, b]) == (sum(x == y for x, y in pairs), len(pairs))
    for y, x in np.ndindex(5, 6):
        assert many[y, x] == len({*labels[:, y, x].tolist()} - {255})


# ---- the whole recipe


def staged(folder: Path, names: list[str], **replaced: str) -> Path:
    """The recipe of Streets with tiny networks; members in `replaced` come from another member's run."""
    rows = yaml.safe_load((CONFIGS / "ensemble_distillation.yaml").read_text())["stages"]
    for row in rows:
        if isinstance(row.get("config"), str):
            row["config"] = str(CONFIGS / row["config"])
        if isinstance(row.get("each"), list):
            row["each"] = [name for name in row["each"] if name in names]
        streets = {"init_args": {"count": 2, "size": list(SIZE)}}
        own = {f"data.{s}.{k}": v for s in ("target", "val", "test") for k, v in streets["init_args"].items()}
        own |= {"data.workers": 0}
        if "job" not in row.get("recipe", {}):
            own |= {"model.network": "tiny.TinySegmenter", "trainer.max_steps": 4, "data.tick": 2, "data.batch_size": 2}
            own |= {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": False}
            if not row.get("flags", {}).get("data.target_labels"):
                own |= {f"data.source.{k}": v for k, v in streets["init_args"].items()}
        elif row["recipe"]["job"]["class_path"] == "Fuse":
            row["recipe"]["job"]["init_args"]["threshold"] = 0.0
        row["flags"] = {**row.get("flags", {}), **own}
    path = folder / "ensemble.yaml"
    path.write_text(yaml.safe_dump({"stages": [row for row in rows if row.get("each") != []]}))
    return path


RUN = Path("runs") / "ensemble" / "seed0"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(tmp_path)


def fit(path: Path, commands: Commands) -> list[str]:
    commands.ran = []
    assert staged_run.run_staged("fit", ["--config", str(path)], commands) == 0, commands.errors
    return [name.split()[1] for name in commands.ran]


@pytest.mark.slow
def test_the_recipe_runs_and_members_come_and_go(tmp_path: Path, commands: Commands) -> None:
    two = ["source_only", "dacs"]
    ran = fit(staged(tmp_path, two), commands)
    tail = ["policy", "fused", "report", "student"]
    assert ran == [*two, *(f"{s}_{m}" for s in ("predict", "distil", "certainty") for m in two), *tail]
    for name in ("fused/fusion.json", "policy/policy.json", "report/pictures/agreement.png", "student/result.json"):
        assert (RUN / name).is_file()
    assert fit(staged(tmp_path, two), commands) == []
    # A member more: its own stages and what is chosen and fused from all.
    three = [*two, "mic"]
    assert fit(staged(tmp_path, three), commands)[:4] == ["mic", "predict_mic", "distil_mic", "certainty_mic"]
    # One less again.
    assert set(fit(staged(tmp_path, two), commands)) <= set(tail)


def in_prediction() -> None:
    from adaptseg.ensemble import members

    _die_in(members, "write_map", lambda path, values: path.name.endswith("1.png"))


def in_fusion() -> None:
    from adaptseg.ensemble import fuse

    _die_in(fuse, "write_map", lambda path, values: path.name.endswith("1.png"))


def in_the_policy() -> None:
    from adaptseg import storage

    _die_in(storage, "atomic_json", lambda path, content: path.name == "policy.json")


def in_the_student() -> None:
    from adaptseg.methods import EnsembleStudent

    _die_in(EnsembleStudent, "training_step", lambda method, *_: method.global_step == 3)


@pytest.mark.slow
def test_killed_in_every_kind_of_stage_it_ends_as_if_nothing_had_been(tmp_path: Path, commands: Commands) -> None:
    path = staged(tmp_path, ["source_only"])
    for name, deadly in (
        ("predict_source_only", in_prediction), ("policy", in_the_policy), ("fused", in_fusion),
        ("student", in_the_student),
    ):  # fmt: skip
        commands.deadly = {name: deadly}
        assert staged_run.run_staged("fit", ["--config", str(path)], commands) == 128 + signal.SIGKILL
        assert not (RUN / name / "done.json").exists()
    commands.deadly = {}
    assert fit(path, commands) == ["student"]
    killed = {name: staged_run.products(RUN / name) for name in ("predict_source_only", "policy", "fused")}
    rows = (RUN / "student" / "metrics.csv").read_text()
    shutil.move("runs", "killed")
    fit(path, commands)
    for name, products in killed.items():
        assert staged_run.products(RUN / name) == products, name
    assert (RUN / "student" / "metrics.csv").read_text() == rows


def test_job_verb_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "job.yaml"
    for text, flags, said in (
        ({"job": {"class_path": "Fuse", "init_args": {"members": []}}}, [], "say where the job leaves"),
        ({"seed_everything": 1}, ["--folder", str(tmp_path)], "no `job:` block"),
        ({"job": {"class_path": "Fuze"}}, ["--folder", str(tmp_path)], "Fuze"),
        (
            {"job": {"class_path": "OraclePolicy", "init_args": {"members": []}}},
            ["--folder", str(tmp_path)],
            "no `data:` block is given",
        ),
    ):
        recipe.write_text(yaml.safe_dump(text))
        assert main(["job", "--config", str(recipe), *flags]) == 2
        assert said in (err := capsys.readouterr().err)
        assert err.count("\n") == 1, err
    assert issubclass(Fuse, Job)
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


# ---- the final student


@pytest.mark.slow
def test_two_processes_train_the_student_of_one(tmp_path: Path) -> None:
    from forked import adaptseg
    from test_distributed import numbers, two_processes
    from test_resume import without_pictures

    scenes = Streets("street", "train", count=4, size=SIZE)
    for number, key in enumerate(scenes.keys):
        labels = scenes.labels(key)
        labels[: 8 * number] = 255  # ranks hold unequal shares
        write_map(tmp_path / "labels" / f"{key}.png", labels)
    flags = [
        "fit", "--config", str(CONFIGS / "ensemble" / "student.yaml"), "--data.target_labels", str(tmp_path / "labels"),
        *(f"--data.{split}.count=4" for split in ("target", "val", "test")),
        *(f"--data.{split}.size=[32, 64]" for split in ("target", "val", "test")),
        "--model.network", "tiny.TinySegmenter", "--trainer.max_steps", "4", "--trainer.accelerator", "cpu",
        "--data.tick", "2", "--trainer.log_every_n_steps", "1",
    ]  # fmt: skip
    one = adaptseg(*flags, folder=tmp_path / "one", before=without_pictures)
    assert (one.code, one.err) == (0, "")
    two = two_processes(*flags, folder=tmp_path / "two")
    assert (two.returncode, two.stderr) == (0, "")
    first, second = (numbers(tmp_path / n / "runs" / "student" / "seed0" / "metrics.csv") for n in ("one", "two"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    active = ["--config", str(CONFIGS / "active" / "cbda.yaml")]
    both = adaptseg(*flags[:3], *active, *flags[3:], folder=tmp_path / "active", before=without_pictures)
    assert both.code == 2
    assert "data.target_labels labels the pool already" in both.err


# ---- published settings


@pytest.mark.parametrize(
    ("pair", "members", "but", "rest", "absent"),
    [
        (
            "gta5", ["r_mrnet", "dacs", "mrkld", "cbst"],
            {"r_mrnet": ["wall", "traffic light", "bus"], "mrkld": ["pole", "motorcycle"], "cbst": ["train"]},
            "dacs", [],
        ),
        (
            "synthia", ["mrkld", "cbst", "r_mrnet"],
            {"mrkld": ["wall", "fence", "traffic sign"], "cbst": ["sky"]}, "r_mrnet", ["terrain", "truck", "train"],
        ),
    ],
)  # fmt: skip
def test_published_members_and_policy(
    pair: str, members: list[str], but: dict[str, list[str]], rest: str, absent: list[str]
) -> None:
    """Section 5 of the specification."""
    path = CONFIGS / "paper" / f"ensemble_distillation_{pair}_to_cityscapes.yaml"
    stages = {stage.name: stage for stage in read_stages([path], [], "/data")}
    assert [name for name in stages if name.startswith("predict_")] == [f"predict_{name}" for name in members]
    manual = stages["policy"].recipe["job"]["init_args"]["manual"]
    expected = dict.fromkeys(CITYSCAPES.names, rest) | {name: m for m, names in but.items() for name in names}
    assert manual == expected | dict.fromkeys(absent)
    fuse = stages["fused"].recipe["job"]["init_args"]
    assert (fuse["window"], fuse["threshold"], fuse.get("border", "zero")) == (5, 0.9, "zero")
    student = stages["student"].recipe
    assert student["trainer"]["max_steps"] == 100_001
    model, data = student["model"]["init_args"], student["data"]["init_args"]
    assert model["optimization"] == {
        "name": "sgd", "lr": 1e-4, "head_lr_factor": 10.0, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True,
        "power": 0.9,
    }  # fmt: skip
    assert (model["hard_share"], model.get("denominator", "weights")) == (0.2, "weights")
    assert model["class_weights"]["init_args"] == {"boost": 7.0, "few_pixels": 64 * 64, "momentum": 0.9}
    assert (data["target_size"], data["crop"], data["batch_size"]) == ([512, 1024], [256, 512], 10)
    assert not data.get("flip", False)
