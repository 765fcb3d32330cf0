"""Running a staged recipe: what is done is skipped, what was interrupted goes on, what has changed is made anew.

In `<run>/`: `lock` · `recipes/<stage>.yaml`, what each stage's process reads · `<stage>/`, what it makes, with
`started.json` (its key, written first) and `done.json` (its key and a hash of each product, written last). The *key*
of a stage is its config, as far as it decides the result, and the content of its inputs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from adaptseg import run_directory, storage
from adaptseg.console import say
from adaptseg.errors import AdaptSegError
from adaptseg.options import own_options
from adaptseg.recipes import load_recipe, take_configs
from adaptseg.stages import Stage, as_tokens, read_stages, references, resolve, split_flags

Launch = Callable[[Sequence[str], int], int]
"""Runs one command (its arguments after `adaptseg`) in a process that inherits an open file, returns its exit code."""

_RECORDS = ("config.yaml", "environment.json", "metrics.csv", "result.json", "pictures", "done.json", "started.json")
"""What in a stage's folder says how it went rather than what it made: seconds, dates, pictures."""


def run_staged(verb: str, arguments: Sequence[str], launch: Launch | None = None) -> int:
    """One verb on a staged recipe: `fit` runs all stages, `validate`, `test`, `predict` the last training alone or the
    one that `--stage NAME` names. Returns the exit code: that of the first stage that did not end well, else 0.

    Args:
        verb: of the command line.
        arguments: what follows it.
        launch: how a stage's process is started; None = `python -m adaptseg.cli`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or os.environ.get("LOCAL_RANK"):
        raise AdaptSegError("a staged recipe is started once, without torchrun: each stage starts its own processes")
    options, rest = own_options(verb, arguments)
    configs, rest = take_configs(rest)
    stages = read_stages(configs, rest, options.root)
    run = run_directory.run_directory(options.runs, configs, options.name, _seed(configs, rest))
    if options.folder is not None:
        raise AdaptSegError("--folder is for single stages; --runs and --name say where a staged recipe runs")
    extra = [f"--{name}" for name in ("wandb", "certainty") if getattr(options, name)]
    if verb != "fit":
        stage = _chosen(stages, options.stage, configs[0])
        names = [earlier.name for earlier in stages[: stages.index(stage)]]
        return (launch or _launch)(_command(verb, stage, run, names, extra), -1)
    if options.fresh and (place := run_directory.set_aside(run)):
        say(f"--fresh: the earlier run is now {place}")
    run.mkdir(parents=True, exist_ok=True)
    with _lock(run) as held:
        return _run_all(stages, run, extra, launch or _launch, held)


def _run_all(stages: Sequence[Stage], run: Path, extra: Sequence[str], launch: Launch, lock: int) -> int:
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        earlier = names[:number]
        folder, title = run / stage.name, f"stage {number + 1}/{len(stages)} {stage.name}"
        key = stage_key(stage, run, earlier)
        done = _read_done(folder)
        if done is not None and done["key"] == key:
            say(f"{title}: done, skipped")
            continue
        say(f"{title}: {_begin(folder, key, done)}")
        arguments = _command(stage.verb, stage, run, earlier, extra if stage.verb == "fit" else [])
        code = launch(arguments, lock)
        if code:
            say(f"{title}: ended with code {code}; the same command goes on from here")
            return code
        if stage.verb == "fit" and not run_directory.is_finished(folder):
            say(f"{title}: stopped before its last step; the same command goes on from here")
            return 1
        storage.atomic_json(folder / "done.json", {"key": key, "products": products(folder)})
    say(f"finished. Everything lies in {run}, a folder for each stage; the last is {run / names[-1]}")
    return 0


# ---- what a stage is made from, and what it made


def stage_key(stage: Stage, run: Path, earlier: Sequence[str]) -> dict[str, Any]:
    """What decides a stage's result, in plain types: verb, recipe, flags, content of every input.

    As for a resume, only some keys of a training decide (`run_directory.MUST_MATCH`); a recipe's trainer may change.
    """
    flags = [(name.replace("init_args.", ""), value) for name, value in stage.flags]
    return {
        "verb": stage.verb,
        "recipe": _deciding(stage),
        "flags": {name: value for name, value in flags if _decides(stage.verb, name)},
        "inputs": {
            reference.text: _outside(reference.entry)
            if reference.stage is None
            else _product(run / reference.stage, reference.entry)
            for reference in references(stage, earlier, "the staged recipe")
        },
    }


def products(folder: Path) -> dict[str, str]:
    """Entry of a stage's folder -> hash of its content, for all that it made. Of a training's checkpoints the last."""
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name in _RECORDS or entry.name.startswith("."):
            continue
        if entry.name == "checkpoints" and run_directory.last_checkpoint(folder).is_file():
            found[entry.name] = content_of(run_directory.last_checkpoint(folder))
        else:
            found[entry.name] = content_of(entry)
    return found


def content_of(path: Path) -> str:
    """Hash of a file's bytes, or of the names and bytes of all files below a folder, hidden ones left out.

    Raises:
        AdaptSegError: there is no such path.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise AdaptSegError(f"{path} does not exist")
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            total.update(f"{name.as_posix()}\0{content_of(file)}\n".encode())
    return total.hexdigest()


def _outside(path: str | None) -> str:
    assert path is not None
    return content_of(Path(path).expanduser())


def _product(folder: Path, entry: str | None) -> Any:
    done = _read_done(folder)
    if done is None:
        raise AdaptSegError(f"{folder / 'done.json'} is gone; start the same command again")
    if entry is None:
        return done["products"]
    if entry in done["products"]:
        return done["products"][entry]
    return content_of(folder / entry)


def _read_done(folder: Path) -> dict[str, Any] | None:
    """What a finished stage left; None where it is not finished or lost something since."""
    path = folder / "done.json"
    if not path.is_file():
        return None
    done = storage.read_json(path)
    return done if all((folder / entry).exists() for entry in done["products"]) else None


def _begin(folder: Path, key: dict[str, Any], done: dict[str, Any] | None) -> str:
    """Make the folder ready for a stage that must run, and say why it must."""
    started = folder / "started.json"
    if not folder.exists():
        reason = "new"
    elif started.is_file() and storage.read_json(started) == key:
        if (folder / "done.json").is_file():
            # It was done, and something is missing now: what is left cannot be trusted to be whole.
            reason = f"lost a part of what it made; the rest is now {run_directory.set_aside(folder)}"
        else:
            reason = "was interrupted, goes on"
    else:
        before = done["key"] if done else storage.read_json(started) if started.is_file() else {}
        what = _difference(before, key)
        reason = f"{what}; what was there is now {run_directory.set_aside(folder)}"
    storage.atomic_json(started, key)
    return reason


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first thing that differs between two keys, for a person."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                parts = (where, name) if where else (name,)
                if where in ("inputs",):
                    if name not in old or name not in new:
                        return f"input {name} was {'added' if name in new else 'removed'}"
                    return f"input {name} has changed"
                return _difference(old.get(name), new.get(name), ".".join(parts))
    return f"{where or 'it'} was {old!r} and is now {new!r}"


def _deciding(stage: Stage) -> dict[str, Any]:
    """The part of a recipe that the result depends on."""
    kept = dict(stage.recipe)
    if stage.verb == "fit":
        kept = {key: kept[key] for key in run_directory.MUST_MATCH if key in kept}
        if "max_steps" in (trainer := stage.recipe.get("trainer") or {}):
            kept["trainer"] = {"max_steps": trainer["max_steps"]}
    for name in run_directory.MAY_CHANGE:
        block, _, argument = name.partition(".init_args.")
        arguments = (kept.get(block) or {}).get("init_args") or {}
        if argument in arguments:
            kept[block] = {**kept[block], "init_args": {k: v for k, v in arguments.items() if k != argument}}
    return kept


def _decides(verb: str, flag: str) -> bool:
    """Whether a flag, without `init_args.`, can change the result."""
    if flag in {name.replace("init_args.", "") for name in run_directory.MAY_CHANGE}:
        return False
    if verb != "fit":
        return flag != "accelerator"
    return any(flag == key or flag.startswith(f"{key}.") for key in run_directory.MUST_MATCH)


# ---- processes


def _command(verb: str, stage: Stage, run: Path, earlier: Sequence[str], extra: Sequence[str]) -> list[str]:
    """The arguments of a stage's process; writes the recipe that it reads."""
    recipe = run / "recipes" / f"{stage.name}.yaml"
    storage.atomic_write(recipe, yaml.safe_dump(resolve(stage.recipe, run, earlier), sort_keys=False))
    place = ["--config", str(recipe), "--folder", str(run / stage.name)]
    return [verb, *place, *extra, *as_tokens(stage.flags, run, earlier)]


def _launch(arguments: Sequence[str], lock: int) -> int:
    """A stage as a process of its own; SIGTERM is handed on, Ctrl-C reaches it by itself."""
    kept = [lock] if lock >= 0 else []
    process = subprocess.Popen([sys.executable, "-m", "adaptseg.cli", *arguments], pass_fds=kept)
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:  # the stage says good-bye itself
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _lock(run: Path) -> Generator[int, None, None]:
    """Alone in this run. A stage's process inherits the lock: one that outlives a killed parent is waited for."""
    with (run / "lock").open("ab") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that works in {run}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _chosen(stages: Sequence[Stage], name: str | None, path: Path) -> Stage:
    """The stage that a verb of evaluation is about."""
    trained = {stage.name: stage for stage in stages if stage.verb == "fit"}
    if not trained or (name is not None and name not in trained):
        raise AdaptSegError(f"--stage {name}: {path} trains {', '.join(trained) or 'nothing'}")
    return trained[name] if name is not None else list(trained.values())[-1]


def _seed(configs: Sequence[Path], flags: Sequence[str]) -> int:
    """The seed that names the run: of the flags, of an overlay, else 0."""
    given = [load_recipe(path).get("seed_everything") for path in configs]
    given += [value for key, value in split_flags(flags) if key == "seed_everything"]
    text = next((str(seed) for seed in reversed(given) if seed is not None), "0")
    if not text.isdecimal():
        raise AdaptSegError(f"seed_everything is {text}; a whole number from 0 on is expected")
    return int(text)
