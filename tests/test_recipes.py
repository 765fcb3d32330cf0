"""The merging rules of recipes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from adaptseg.errors import AdaptSegError
from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs

RECIPE: dict[str, Any] = {
    "model": {
        "class_path": "Supervised",
        "init_args": {
            "network": {"class_path": "SmpSegmenter", "init_args": {"decoder": "FPN", "weights": True}},
            "source_weight": 1.0,
        },
    },
    "data": {"class_path": "DomainPair", "init_args": {"source": {"class_path": "Streets"}, "batch_size": 4}},
    "active": {"class_path": "CBDA", "init_args": {"budget": 0.2, "radius": 1}},
    "trainer": {"max_steps": 1200, "callbacks": ["a", "b"]},
}


def merged(*later: dict[str, Any]) -> dict[str, Any]:
    recipes = [("recipe.yaml", copy.deepcopy(RECIPE)), *((f"overlay{n}.yaml", o) for n, o in enumerate(later))]
    return merge_recipes(recipes)


# ---- rule 1: one file owns the model


def test_a_later_file_changes_single_arguments_of_the_model() -> None:
    result = merged({"model": {"init_args": {"source_weight": 0.5}}})
    assert result["model"]["class_path"] == "Supervised"
    assert result["model"]["init_args"] == {**RECIPE["model"]["init_args"], "source_weight": 0.5}
    again = merged({"model": {"class_path": "Supervised", "init_args": {"source_weight": 0.5}}})
    assert again == result


def test_another_model_class_is_refused_with_both_names() -> None:
    with pytest.raises(AdaptSegError, match=r"overlay0\.yaml switches model\.class_path from Supervised to Other"):
        merged({"model": {"class_path": "Other"}})
    with pytest.raises(AdaptSegError, match=r"overlay1\.yaml switches"):
        merged({"model": {"init_args": {"source_weight": 0.5}}}, {"model": {"class_path": "Other"}})


def test_the_model_may_come_from_a_later_file() -> None:
    result = merge_recipes([("data.yaml", {"data": RECIPE["data"]}), ("recipe.yaml", {"model": RECIPE["model"]})])
    assert result == {"data": RECIPE["data"], "model": RECIPE["model"]}


def test_another_network_does_not_inherit_arguments() -> None:
    network = {"class_path": "tiny.TinySegmenter", "init_args": {"width": 4}}
    assert merged({"model": {"init_args": {"network": network}}})["model"]["init_args"]["network"] == network
    same = merged(
        {"model": {"init_args": {"network": {"class_path": "SmpSegmenter", "init_args": {"decoder": "PAN"}}}}}
    )
    assert same["model"]["init_args"]["network"]["init_args"] == {"decoder": "PAN", "weights": True}


# ---- rule 2: data is replaced whole


def test_data_is_replaced_whole() -> None:
    overlay = {"data": {"class_path": "DomainPair", "init_args": {"target": {"class_path": "CamVid"}}}}
    result = merged(overlay)
    assert result["data"] == overlay["data"]
    assert result["model"] == RECIPE["model"]


# ---- rule 3: active is replaced if it names its class


def test_active_is_replaced_if_it_names_its_class_else_changed() -> None:
    replaced = {"class_path": "CBDA", "init_args": {"budget": 0.05}}
    assert merged({"active": replaced})["active"] == replaced
    changed = merged({"active": {"init_args": {"budget": 0.05}}})["active"]
    assert changed == {"class_path": "CBDA", "init_args": {"budget": 0.05, "radius": 1}}
    assert merged({"active": None})["active"] is None
    assert merged({"active": None}, {"active": replaced})["active"] == replaced


# ---- everything else is merged key by key


def test_other_blocks_are_merged_and_lists_replaced() -> None:
    result = merged({"trainer": {"callbacks": ["c"], "accelerator": "cpu"}, "seed_everything": 3})
    assert result["trainer"] == {"max_steps": 1200, "callbacks": ["c"], "accelerator": "cpu"}
    assert result["seed_everything"] == 3


def test_the_last_of_many_wins_and_arguments_stay_as_they_were() -> None:
    recipe, overlay = copy.deepcopy(RECIPE), {"trainer": {"max_steps": 10}}
    result = merge_recipes([("a", recipe), ("b", overlay), ("c", {"trainer": {"max_steps": 20}})])
    assert result["trainer"]["max_steps"] == 20
    assert recipe == RECIPE
    assert overlay == {"trainer": {"max_steps": 10}}
    assert merge_recipes([]) == {}


# ---- files


def test_a_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 10}\n")
    assert load_recipe(tmp_path / "a.yaml") == {"trainer": {"max_steps": 10}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  a: 1\n b: 2\n", "line 3"),
        ("trainer: {max_steps: 10\n", "line 2"),
        ("a: b: c", "line 1"),
        ("", "holds no mapping of keys such as model:"),
        ("- model", "holds no mapping"),
    ],
)
def test_broken_recipes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(AdaptSegError, match=message) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_missing_recipes_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdaptSegError, match="does not exist"):
        load_recipe(tmp_path / name)


# ---- the command line


def test_config_flags_are_taken_out_in_order() -> None:
    arguments = ["--config", "a.yaml", "--data.batch_size", "4", "--config=b.yaml", "-c", "c.yaml", "--x=1", "-c=d=e"]
    paths, rest = take_configs(arguments)
    assert paths == [Path("a.yaml"), Path("b.yaml"), Path("c.yaml"), Path("d=e")]
    assert rest == ["--data.batch_size", "4", "--x=1"]
    assert take_configs([]) == ([], [])


@pytest.mark.parametrize("arguments", [["--config"], ["--config="], ["--config", "a.yaml", "-c"]])
def test_a_config_flag_without_a_path_is_refused(arguments: list[str]) -> None:
    with pytest.raises(AdaptSegError, match="needs the path of a YAML file"):
        take_configs(arguments)


# ---- the data folder


def test_the_root_is_filled_in_everywhere() -> None:
    recipe = {"a": ["{root}/x", 1, {"b": "{root}"}], "c": "plain", "d": None, "e": "{other}"}
    filled = {"a": ["/data/x", 1, {"b": "/data"}], "c": "plain", "d": None, "e": "{other}"}
    assert fill_root(recipe, "/data") == filled
    assert fill_root({"c": "plain"}, None) == {"c": "plain"}
    with pytest.raises(AdaptSegError, match=r"reads data from \{root\}/x: say where that lies with --root DIR"):
        fill_root(recipe, None)
