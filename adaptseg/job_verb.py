"""`adaptseg job`: a recipe's `job:` block, on the data of that recipe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import yaml
from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
from jsonargparse._deprecated import JsonargparseDeprecationWarning

# Class names without module paths resolve once their module is imported.
import adaptseg.ensemble
import adaptseg.measure
import adaptseg.networks  # noqa: F401
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace
from adaptseg.lightning_cli import Parser
from adaptseg.options import own_options
from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs

_OF_A_TRAINING = ("model", "active", "trainer")
"""Blocks that a job skips: the recipe of a training can lend it the data."""


def run(verb: str, arguments: Sequence[str]) -> None:
    """Parse a recipe with a `job:` block and run it; `--folder` says where it leaves what it makes."""
    options, rest = own_options(verb, arguments)
    configs, rest = take_configs(rest)
    merged = fill_root(merge_recipes([(str(path), load_recipe(path)) for path in configs]), options.root)
    merged = {key: value for key, value in merged.items() if key not in _OF_A_TRAINING}
    text = ["--config", yaml.safe_dump(merged, sort_keys=False)] if merged else []
    if options.folder is None:
        raise AdaptSegError("say where the job leaves what it makes: --folder DIR")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=JsonargparseDeprecationWarning)  # as for the trainer's parser
        parser = job_parser()
        config = parser.parse_args([*text, *rest])
        if config.get("job") is None:
            raise AdaptSegError("no `job:` block is given")
        made = parser.instantiate_classes(config)
    place = Workplace(options.folder, made.get("data"), _device(config.accelerator), config.seed_everything)
    place.folder.mkdir(parents=True, exist_ok=True)
    made["job"].run(place)


def job_parser() -> Parser:
    """Reads what a light job reads of a recipe."""
    parser = Parser(prog="adaptseg job", allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a recipe or an overlay")
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_argument("--accelerator", type=str, default="auto")
    parser.add_subclass_arguments(Job, "job", required=False)
    parser.add_subclass_arguments(DomainPair, "data", required=False)
    parser.link_arguments("seed_everything", "data.init_args.seed")
    return parser


def _device(accelerator: str) -> torch.device:
    """cpu, gpu, or auto = a GPU where there is one."""
    names = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "auto": "cuda" if torch.cuda.is_available() else "cpu"}
    if accelerator not in names:
        raise AdaptSegError(f"accelerator is '{accelerator}'; a job runs on cpu or gpu (auto chooses)")
    return torch.device(names[accelerator])
