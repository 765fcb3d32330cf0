"""Laying recipes over each other before they are parsed.

jsonargparse merges YAML key by key, which leaks the arguments of a class that a later file replaces (Streets' `count`
into CamVid). Three rules prevent it: one file owns the whole `model:` block and no later file switches its class; a
later `data:` replaces the whole block; a later `active:` replaces it if it names its class, else it changes single
arguments. Below them (a network, say), naming another class replaces that block too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adaptseg.errors import AdaptSegError


def load_recipe(path: Path) -> dict[str, Any]:
    """One YAML file as a mapping; AdaptSegError names the file and the line that is wrong."""
    if not path.is_file():
        raise AdaptSegError(f"config file {path} does not exist")
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise AdaptSegError(f"config file {path}: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise AdaptSegError(f"config file {path} holds no mapping of keys such as model:, data:, trainer:")
    return recipe


def merge_recipes(recipes: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Merge (file name, mapping) pairs, later over earlier, by the three rules above.

    Raises:
        AdaptSegError: a later file switches the class of `model:`.
    """
    merged: dict[str, Any] = {}
    for name, recipe in recipes:
        for key, value in recipe.items():
            if key == "model" and not isinstance(value, dict):
                raise AdaptSegError(f"{name}: model is {value!r}; a mapping with class_path and init_args is expected")
            if key == "model" and _switches_class(merged.get("model"), value):
                raise AdaptSegError(
                    f"{name} switches model.class_path from {merged['model']['class_path']} to {value['class_path']}; "
                    "one file owns the whole model: block, so start from the recipe of that method instead"
                )
            replaces = key == "data" or (key == "active" and isinstance(value, dict) and "class_path" in value)
            merged[key] = value if replaces else _merge(merged.get(key), value)
    return merged


def _switches_class(earlier: Any, later: Any) -> bool:
    return (
        isinstance(earlier, dict)
        and isinstance(later, dict)
        and "class_path" in earlier
        and later.get("class_path", earlier["class_path"]) != earlier["class_path"]
    )


def _merge(earlier: Any, later: Any) -> Any:
    if not isinstance(earlier, dict) or not isinstance(later, dict) or _switches_class(earlier, later):
        return later
    return {**earlier, **{key: _merge(earlier.get(key), value) for key, value in later.items()}}


def fill_root(value: Any, root: str | None) -> Any:
    """Replace `{root}` in the strings of a recipe by the folder that `--root` names."""
    if isinstance(value, dict):
        return {key: fill_root(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_root(item, root) for item in value]
    if not isinstance(value, str) or "{root}" not in value:
        return value
    if root is None:
        raise AdaptSegError(f"the recipe reads data from {value}: say where that lies with --root DIR")
    return value.replace("{root}", root)


def take_configs(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split the paths of all `--config FILE`, `--config=FILE`, `-c FILE` from the other arguments."""
    paths: list[Path] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c"):
            rest.append(argument)
            continue
        path = value if equals else next(waiting, "")
        if not path:
            raise AdaptSegError(f"{name} needs the path of a YAML file")
        paths.append(Path(path))
    return paths, rest
