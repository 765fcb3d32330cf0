"""Several validation and test sets, and means over subsets of the classes, from YAML to result.json."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked import adaptseg

from adaptseg.classes import CITYSCAPES, SYNTHIA, ClassTable
from adaptseg.data import DomainPair, Streets
from adaptseg.errors import AdaptSegError

SIZE = [32, 64]


class SynthiaLike(Streets):
    """Streets under SYNTHIA's table, whose subsets the scores then show."""

    def __init__(self, count: int = 4) -> None:
        super().__init__("game", "train", count=count, size=(32, 64))
        self.class_table = SYNTHIA


def streets(look: str, split: str, count: int = 2) -> dict:
    return {"class_path": "Streets", "init_args": {"look": look, "split": split, "count": count, "size": SIZE}}


def recipe(val: object, test: object) -> dict:
    source = {"class_path": "test_several_sets.SynthiaLike"}
    data = {"source": source, "target": streets("street", "train", 4), "val": val, "test": test, "workers": 0}
    return {
        "model": {"class_path": "Supervised", "init_args": {"network": "tiny.TinySegmenter"}},
        "data": {"class_path": "DomainPair", "init_args": {**data, "batch_size": 2, "tick": 2}},
        "active": {"class_path": "CBDA", "init_args": {"budget": 0.1, "schedule": [0.5]}},
        "trainer": {"max_steps": 4, "accelerator": "cpu"},
    }


@pytest.mark.slow
def test_main_set_and_others_are_scored_apart(tmp_path: Path) -> None:
    val = {"clear": streets("street", "val"), "fog": streets("fog", "val", 3)}
    test = [streets("street", "test"), {"class_path": "test_several_sets.SynthiaLike", "init_args": {"count": 2}}]
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(recipe(val, test)))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(recipe(val["fog"], test[0])))
    done = adaptseg("fit", "--config", "many.yaml", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    place = tmp_path / "runs" / "many" / "seed0"
    scores = json.loads((place / "result.json").read_text())
    main, others = scores["val"], scores["val"]["sets"]
    assert set(others) == {"fog"}
    assert set(others["fog"]) == set(main) - {"sets"}
    for row in (main, others["fog"]):  # against means by hand
        iou = row["iou"]
        for name, members in (("miou", CITYSCAPES.names), *((f"miou_{n}", m) for n, m in SYNTHIA.subsets.items())):
            assert row[name] == pytest.approx(np.mean([iou[c] for c in members if c in iou]))
    assert main["iou"] != others["fog"]["iou"]
    (round_,) = scores["rounds"]
    assert {"miou", "miou_16", "miou_13", "fog/miou", "fog/miou_16", "fog/miou_13"} <= set(round_)
    assert "fog/miou_16" in done.out
    assert "mean of 13" in done.out
    with (place / "metrics.csv").open() as file:
        logged = {row["metric"] for row in csv.DictReader(file)}
    assert {"val/miou", "val/miou_16", "val/fog/miou", "val/fog/miou_13", "val/fog/iou/road"} <= logged
    # The same weights on the second set alone give what they gave beside the first.
    checkpoint = str(place / "checkpoints" / "last.ckpt")
    done = adaptseg("validate", "--config", "one.yaml", "--ckpt_path", checkpoint, folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    alone = json.loads((tmp_path / "runs" / "one" / "seed0" / "val.json").read_text())
    assert {name: value for name, value in alone.items() if name != "checkpoint"} == others["fog"]
    done = adaptseg("test", "--config", "many.yaml", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert set(json.loads((place / "test.json").read_text())["sets"]) == {"synthialike"}


@pytest.mark.parametrize("several", [False, True])
def test_a_broken_set_is_one_line(tmp_path: Path, several: bool) -> None:
    absent = {"class_path": "BDD100K", "init_args": {"root": "nowhere", "split": "val"}}
    val = {"clear": streets("street", "val"), "bdd": absent} if several else absent
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(recipe(val, None), sort_keys=False))
    for verb, code in ((["fit"], 2), (["data", "check"], 1)):
        done = adaptseg(*verb, "--config", "broken.yaml", folder=tmp_path)
        assert done.code == code
        said = (done.err if code == 2 else done.out).splitlines()
        assert [line for line in said if "folder nowhere/images/10k/val does not exist" in line], done
        assert len(done.err.splitlines()) == (1 if code == 2 else 0)


def test_synthias_subsets_are_the_fields() -> None:
    sixteen, thirteen = SYNTHIA.subsets["16"], SYNTHIA.subsets["13"]
    assert set(CITYSCAPES.names) - set(sixteen) == {"terrain", "truck", "train"}
    assert set(sixteen) - set(thirteen) == {"wall", "fence", "pole"}
    assert (len(sixteen), len(thirteen)) == (16, 13)
    assert ClassTable.from_dict(json.loads(json.dumps(SYNTHIA.to_dict()))).subsets == SYNTHIA.subsets
    assert "subsets" not in CITYSCAPES.to_dict()


def test_the_source_decides_about_subsets() -> None:
    target = Streets("street", "train", count=1)
    assert DomainPair(source=SynthiaLike(), target=target).scored_table.subsets == SYNTHIA.subsets
    assert DomainPair(source=None, target=SynthiaLike()).scored_table.subsets == SYNTHIA.subsets
    assert not DomainPair(source=target, target=target).scored_table.subsets


@pytest.mark.parametrize("subsets", [{"a b": ("road",)}, {"a": ("tram",)}, {"a": ()}, {"a": ("road", "road")}])
def test_subsets_that_mean_nothing_are_refused(subsets: dict) -> None:
    with pytest.raises(AdaptSegError, match=r"class table 'mine': subset"):
        ClassTable("mine", CITYSCAPES.classes, subsets=subsets)
