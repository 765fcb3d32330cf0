"""Staged recipes: several trainings and light jobs in one file, each a process of its own.

    stages:
      - name: teacher                    # its folder is <run>/teacher
        config: source_only.yaml         # one recipe, or a list of a recipe and overlays; below this file's folder
        flags: {trainer.max_steps: 600}  # as on the command line
      - each: [small, large]             # the stage once for each, {each} replaced
        name: student_{each}
        config: ensemble/student.yaml
        recipe: {data: {...}}            # keys laid over the files, as one more overlay
        flags: {model.init_from: "{stage:teacher}"}
      - name: compare
        needs: [teacher]                 # depends on what it does not name
        recipe: {job: {class_path: Compare, init_args: {runs: "{stages:student_*}", truth: "{file:/data/truth}"}}}

A recipe with a `job:` block is a light job, one with `model:` is trained; `verb:` names another verb. Stages meet only
through files: `{stage:NAME}` is the folder of an earlier stage (`{stage:NAME}/labels` something in it), `{stages:GLOB}`
the list of all earlier ones whose names match, `{file:PATH}` something from outside.

A stage is done when its `done.json` stands: what it was made from (config and content of its inputs) and a hash of what
it made. `fit` of the same file skips done stages whose config and inputs are still the same, goes on with the one that
was interrupted, and sets aside what was made from something else.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptseg.errors import AdaptSegError
from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs

_KEYS = {"name", "each", "config", "recipe", "flags", "needs", "verb"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\{(stage|stages|file):([^{}]+)\}(?:/([^/{}]+))?")
_JOB_KEYS = ("job", "data", "seed_everything")
"""What a light job reads of its recipe: a training's recipe can lend it the data."""


@dataclass(frozen=True)
class Stage:
    """One stage, references still in braces.

    Attributes:
        name: unique; its folder.
        verb: `fit`, `job` or another verb of the command line.
        recipe: all its files and its inline keys, merged.
        flags: (dotted key without dashes, value as on the command line), in order.
        needs: stages whose whole product it depends on, beside those it refers to.
    """

    name: str
    verb: str
    recipe: dict[str, Any]
    flags: tuple[tuple[str, str | None], ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """One thing that a stage reads: `entry` in the folder of an earlier stage (None = all of it), or a file or folder
    from outside (`stage` None)."""

    stage: str | None
    entry: str | None

    @property
    def text(self) -> str:
        inside = f"/{self.entry}" if self.stage is not None and self.entry else ""
        return f"{{file:{self.entry}}}" if self.stage is None else f"{{stage:{self.stage}}}{inside}"


def is_staged(arguments: Sequence[str]) -> bool:
    """Whether one of the `--config` files of a command has the key `stages:`."""
    return any(path.is_file() and "stages" in load_recipe(path) for path in take_configs(arguments)[0])


def read_stages(configs: Sequence[Path], flags: Sequence[str], root: str | None) -> list[Stage]:
    """The stages of a staged recipe, with the overlays and flags that a command lays over it.

    Overlays (`data:`, `model:`, `trainer:`, `seed_everything:`) and flags lie over every stage that reads such a key;
    `--stages.NAME.KEY VALUE` is a flag of one stage.

    Args:
        configs: the staged recipe, then overlays.
        flags: what else the command line says.
        root: what `{root}` in recipes stands for.

    Raises:
        AdaptSegError: says which file, stage or key is wrong.
    """
    path, *overlays = configs
    rows = load_recipe(path)
    if set(rows) != {"stages"}:
        raise AdaptSegError(
            f"{path}: `stages:` and nothing else is expected in the first --config, {', '.join(rows)} given; "
            "lay overlays over it with further --config"
        )
    laid = [(str(overlay), load_recipe(overlay)) for overlay in overlays]
    for name, overlay in laid:
        if wrong := sorted(set(overlay) - {"data", "model", "trainer", "seed_everything"}):
            raise AdaptSegError(
                f"{name} sets {', '.join(wrong)}:, which cannot lie over every stage of {path}; name the file in the "
                "`config:` list of the stage that is meant"
            )
    if not isinstance(rows["stages"], list) or not rows["stages"]:
        raise AdaptSegError(f"{path}: stages is {rows['stages']!r}; a list of stages is expected")
    stages: list[Stage] = []
    for row in rows["stages"]:
        for expanded in _each(row, path):
            stage = _read(expanded, path, laid, root)
            if any(stage.name == earlier.name for earlier in stages):
                raise AdaptSegError(f"{path}: two stages are named '{stage.name}'; give each a name of its own")
            stages.append(stage)
            references(stage, [earlier.name for earlier in stages[:-1]], str(path))  # raises where one is wrong
    return _with_flags(stages, split_flags(flags), path)


def split_flags(tokens: Sequence[str]) -> list[tuple[str, str | None]]:
    """`--a.b 1 --c=2 --d` as (key, value) pairs; AdaptSegError for a value without a flag."""
    pairs: list[tuple[str, str | None]] = []
    for token in tokens:
        if token.startswith("--"):
            key, equals, value = token[2:].partition("=")
            pairs.append((key, value if equals else None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = pairs[-1][0], token
        else:
            raise AdaptSegError(f"'{token}' is not understood; a staged recipe takes flags such as --trainer.devices 2")
    return pairs


def references(stage: Stage, earlier: Sequence[str], where: str) -> list[Reference]:
    """What a stage reads, in order, each once. AdaptSegError where it names a stage that does not come before it."""
    found = [Reference(name, None) for name in stage.needs]
    texts = [*_strings(stage.recipe), *(value for _, value in stage.flags if value is not None)]
    for text in texts:
        for kind, name, entry in _REFERENCE.findall(text):
            if kind == "file":
                found.append(Reference(None, name))
            elif kind == "stage":
                found.append(Reference(name, entry or None))
            elif matching := fnmatch.filter(earlier, name):
                found += [Reference(match, entry or None) for match in matching]
            else:
                raise AdaptSegError(f"{where}: stage '{stage.name}': no earlier stage matches {{stages:{name}}}")
    for reference in found:
        if reference.stage is not None and reference.stage not in earlier:
            raise AdaptSegError(
                f"{where}: stage '{stage.name}' needs '{reference.stage}', which is not a stage before it"
                + (f" ({', '.join(earlier)})" if earlier else "")
            )
    return list(dict.fromkeys(found))


def resolve(value: Any, run: Path, earlier: Sequence[str]) -> Any:
    """A value of a recipe or flag with references as paths; `{stages:GLOB}` becomes the list of them."""
    if isinstance(value, dict):
        return {key: resolve(item, run, earlier) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, run, earlier) for item in value]
    if not isinstance(value, str):
        return value
    many = re.match(r"\{stages:([^{}]+)\}", value)
    if many is not None:
        return [f"{run / name}{value[many.end() :]}" for name in fnmatch.filter(earlier, many[1])]
    value = re.sub(r"\{stage:([^{}]+)\}", lambda match: str(run / match[1]), value)
    return re.sub(r"\{file:([^{}]+)\}", lambda match: str(Path(match[1]).expanduser()), value)


def as_tokens(flags: Sequence[tuple[str, str | None]], run: Path, earlier: Sequence[str]) -> list[str]:
    """Flags as the command line of a stage has them."""
    tokens: list[str] = []
    for key, value in flags:
        tokens.append(f"--{key}")
        if value is not None:
            resolved = resolve(value, run, earlier)
            tokens.append(resolved if isinstance(resolved, str) else json.dumps(resolved))
    return tokens


def _each(row: Any, path: Path) -> Iterator[dict[str, Any]]:
    """The stages that an entry of the list means."""
    if not isinstance(row, dict) or "name" not in row:
        raise AdaptSegError(f"{path}: stage {row!r}: a mapping with a name is expected")
    if unknown := sorted(set(row) - _KEYS):
        raise AdaptSegError(
            f"{path}: stage '{row['name']}' has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}"
        )
    values = row.get("each")
    if values is None:
        yield row
        return
    if not isinstance(values, list) or "{each}" not in str(row["name"]):
        raise AdaptSegError(
            f"{path}: stage '{row['name']}': `each:` is a list, and the name holds {{each}}, so that each is another"
        )
    for value in values:
        yield {key: _replaced(item, "{each}", str(value)) for key, item in row.items() if key != "each"}


def _read(row: Mapping[str, Any], path: Path, laid: list[tuple[str, dict[str, Any]]], root: str | None) -> Stage:
    name = str(row["name"])
    where = f"{path}: stage '{name}'"
    if not _NAME.fullmatch(name):
        raise AdaptSegError(f"{where}: letters, digits, - and _ make a name")
    files = [row["config"]] if isinstance(row.get("config"), str) else row.get("config") or []
    flags, needs, inline = row.get("flags") or {}, row.get("needs") or [], row.get("recipe") or {}
    if not isinstance(files, list) or not isinstance(needs, list):
        raise AdaptSegError(f"{where}: `config:` is a file or a list of files, `needs:` a list of stages")
    if not isinstance(flags, dict) or not isinstance(inline, dict):
        raise AdaptSegError(f"{where}: `flags:` and `recipe:` are mappings")
    below = [path.parent / file for file in files]
    parts = [(str(file), load_recipe(file)) for file in below]
    if staged := next((file for file, recipe in parts if "stages" in recipe), None):
        raise AdaptSegError(f"{where}: {staged} is staged itself; list its stages here")
    parts += [(where, inline)] if inline else []
    own = merge_recipes(parts)
    verb = str(row.get("verb") or ("job" if "job" in own else "fit"))
    if verb == "job":
        own = {key: value for key, value in own.items() if key in _JOB_KEYS}
    if not own:
        raise AdaptSegError(f"{where}: neither `config:` nor `recipe:` is given")
    over = [(file, {key: value for key, value in overlay.items() if _reads(verb, key)}) for file, overlay in laid]
    recipe = fill_root(merge_recipes([(where, own), *over]), root)
    pairs = tuple((str(key), _text(fill_root(value, root))) for key, value in flags.items())
    return Stage(name, verb, recipe, pairs, tuple(str(need) for need in needs))


def _with_flags(stages: list[Stage], given: list[tuple[str, str | None]], path: Path) -> list[Stage]:
    """The stages with the flags of the command line after their own."""
    names = {stage.name for stage in stages}
    for key, _ in given:
        if key.startswith("stages.") and key.split(".")[1] not in names:
            raise AdaptSegError(
                f"--{key}: {path} has no stage '{key.split('.')[1]}'; it has {', '.join(sorted(names))}"
            )
    result: list[Stage] = []
    used: set[str] = set()
    for stage in stages:
        own: list[tuple[str, str | None]] = []
        for key, value in given:
            prefix = f"stages.{stage.name}."
            if key.startswith(prefix):
                own.append((key.removeprefix(prefix), value))
            elif key.startswith("stages.") or not _takes(stage, key):
                continue
            else:
                own.append(
                    ("accelerator", value) if stage.verb == "job" and key == "trainer.accelerator" else (key, value)
                )
            used.add(key)
        result.append(Stage(stage.name, stage.verb, stage.recipe, (*stage.flags, *own), stage.needs))
    if unused := [key for key, _ in given if key not in used]:
        raise AdaptSegError(f"--{unused[0]}: no stage of {path} reads it")
    return result


def _takes(stage: Stage, key: str) -> bool:
    """Whether a flag for all stages is one for this one."""
    block = key.split(".")[0]
    if block == "active":
        return "active" in stage.recipe
    return _reads(stage.verb, block) or key == "trainer.accelerator"


def _reads(verb: str, block: str) -> bool:
    return verb != "job" or block in _JOB_KEYS


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {_replaced(key, old, new): _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
