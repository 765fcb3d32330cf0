"""Light jobs: the work between the trainings of a staged recipe, each a class with `run`."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
from jsonargparse._deprecated import JsonargparseDeprecationWarning

import adaptseg.networks  # noqa: F401  (class names without module paths resolve once their module is imported)
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.lightning_cli import Parser
from adaptseg.options import own_options
from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs


@dataclass(frozen=True)
class Workplace:
    """What a job is given to work with.

    Attributes:
        folder: where it leaves what it makes. A job that was killed is run again in the same folder, from the same
            inputs: files it finds there, all written whole or not at all, are its own.
        data: the domain pair of the recipe; None where the recipe has no `data:`.
        device: where networks run.
        seed: `seed_everything`.
    """

    folder: Path
    data: DomainPair | None
    device: torch.device
    seed: int

    def require_data(self) -> DomainPair:
        """The domain pair; AdaptSegError where there is none."""
        if self.data is None:
            raise AdaptSegError("no `data:` block is given, whose target images this job reads; name a recipe with one")
        return self.data


class Job(ABC):
    """Some work that needs no optimiser. Its constructor takes plain arguments, as YAML holds them."""

    @abstractmethod
    def run(self, place: Workplace) -> None:
        """Do it. AdaptSegError for everything the user can mend."""


def run(verb: str, arguments: Sequence[str]) -> None:
    """Parse a recipe with a `job:` block and run it; `--folder` says where it leaves what it makes."""
    import adaptseg.ensemble
    import adaptseg.measure  # noqa: F401  (jobs, by class name)

    options, rest = own_options(verb, arguments)
    configs, rest = take_configs(rest)
    merged = fill_root(merge_recipes([(str(path), load_recipe(path)) for path in configs]), options.root)
    text = ["--config", yaml.safe_dump(merged, sort_keys=False)] if merged else []
    if options.folder is None:
        raise AdaptSegError("say where the job leaves what it makes: --folder DIR")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=JsonargparseDeprecationWarning)  # as for the trainer's parser
        parser = _parser()
        config = parser.parse_args([*text, *rest])
        if config.get("job") is None:
            raise AdaptSegError("no `job:` block is given")
        made = parser.instantiate_classes(config)
    place = Workplace(options.folder, made.get("data"), _device(config.accelerator), config.seed_everything)
    place.folder.mkdir(parents=True, exist_ok=True)
    made["job"].run(place)


def _parser() -> Parser:
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
