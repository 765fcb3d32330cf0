"""The verbs of training: parser, links between blocks, run directories, house callbacks.

Every override of a private name of Lightning or jsonargparse lives here, each with its reason.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import adaptseg.data
import adaptseg.networks
from adaptseg import console, run_directory, wandb_run
from adaptseg.active import Acquisition
from adaptseg.callbacks.checkpoints import AtomicCheckpointIO, MovableCheckpoint
from adaptseg.callbacks.label_artifacts import LabelArtifacts
from adaptseg.callbacks.panels import Panels
from adaptseg.callbacks.predictions import PredictionWriter
from adaptseg.callbacks.preemption import REQUEUE_CODE, Preempted, Preemption, is_requeued, parse_signal, with_slurm
from adaptseg.callbacks.progress import RunProgress
from adaptseg.callbacks.report import Report, write_scores
from adaptseg.callbacks.validation import ValidationTimes
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError, of_ours
from adaptseg.known_warnings import silence
from adaptseg.loggers import CsvLogger
from adaptseg.methods import Method, Training
from adaptseg.options import own_options
from adaptseg.parsing import START, Refusals, one_line
from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # steps are the unit; an epoch is a tick
    "log_every_n_steps": 20,
    "num_sanity_val_steps": 0,
    "reload_dataloaders_every_n_epochs": 1,  # each tick reads the labels bought so far
    "use_distributed_sampler": False,  # our sampler slices the global batch itself
    "enable_model_summary": False,
}


def run(verb: str, arguments: Sequence[str]) -> None:
    """Parse and run one verb. Raises AdaptSegError for everything the user can mend."""
    silence(verb)
    options, rest = own_options(verb, arguments)
    if options.stage is not None:
        raise AdaptSegError(
            f"--stage {options.stage} is about staged recipes; none of the --config files has `stages:`"
        )
    configs, rest = take_configs(rest)
    merged = fill_root(merge_recipes([(str(path), load_recipe(path)) for path in configs]), options.root)
    # ActionConfigFile accepts the text of a config in place of a path.
    text = ["--config", yaml.safe_dump(merged, sort_keys=False)] if merged else []
    with warnings.catch_warnings():
        # Lightning warns when arguments come from code while sys.argv holds some: here they are the same, merged.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        AdaptSegCLI(options, configs, [verb, *text, *rest])


class Parser(LightningArgumentParser):
    """Says what is wrong in one line; the sixty lines of usage that argparse prints first hide it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise AdaptSegError(one_line(message)) from ex


class AdaptSegCLI(LightningCLI):
    """LightningCLI with an `active:` block, run directories and the house callbacks."""

    def __init__(self, options: argparse.Namespace, configs: Sequence[Path], arguments: list[str]) -> None:
        self.options, self.configs = options, configs
        self.finished = False
        self.refusals = Refusals()
        super().__init__(
            Training,
            DomainPair,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # the run directory saves it, before anything else happens
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=arguments,
        )

    # ---- the parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs, allow_abbrev=False)  # --trainer.max_step is a mistake, not max_steps
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a recipe or an overlay")
        parser.add_instantiator(self.refusals.instantiate, adaptseg.data.Scenes)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Acquisition, "active", subclass_mode=True, required=False)
        for block in ("data", "model", "active"):
            parser.link_arguments("seed_everything", f"{block}.init_args.seed")
        parser.link_arguments("data.class_table", "model.init_args.class_table", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        # Lightning 2.6 lets a checkpoint's hyper-parameters overrule the command line (Lightning #21455). The config is
        # the truth here; a checkpoint carries state only.
        return

    # ---- before anything is built

    def before_instantiate_classes(self) -> None:
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        for block in ("model", "data"):
            if config.get(block) is None:
                raise AdaptSegError(f"no `{block}:` block is given; {START}")
        seed = config.seed_everything
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise AdaptSegError(f"seed_everything is {seed}; a whole number from 0 on is expected")
        self.folder = self.options.folder or run_directory.run_directory(
            self.options.runs, self.configs, self.options.name, config.seed_everything
        )
        config.trainer.default_root_dir = str(self.folder)
        if self.subcommand == "fit":
            self._prepare_fit(config)
        elif config.ckpt_path is None:
            config.ckpt_path = self._existing_checkpoint()
        if self.subcommand == "predict":
            config.return_predictions = False  # they are written one by one, not kept in memory
        elif self.subcommand != "fit":
            config.verbose = False  # the report prints a table that a person can read

    def _prepare_fit(self, config: Any) -> None:
        last = run_directory.last_checkpoint(self.folder)
        self.plain_config = saved = self._plain_config()
        self.preemption = Preemption(last, parse_signal(self.options.preempt_signal))
        self.preemption.watch()
        fresh = self.options.fresh and not is_requeued()
        if fresh != self.options.fresh:
            say("--fresh: SLURM has requeued this job, so it goes on with the run that it began")
        if fresh:
            if _is_rank_zero() and (place := run_directory.set_aside(self.folder)):
                say(f"--fresh: the earlier run is now {place}")
        elif last.is_file():
            run_directory.require_same_config(self.folder, saved)
            if run_directory.is_finished(self.folder):
                self.finished = True
                return
            config.ckpt_path = config.ckpt_path or str(last)
            say(f"resuming {self.folder} from {config.ckpt_path}")
        if _is_rank_zero():
            run_directory.write_stamp(self.folder, saved)

    def _existing_checkpoint(self) -> str:
        last = run_directory.last_checkpoint(self.folder)
        if not last.is_file():
            raise AdaptSegError(
                f"{last} does not exist: run `adaptseg fit` with the same --config first, or give --ckpt_path"
            )
        return str(last)

    def _plain_config(self) -> dict[str, Any]:
        """The resolved config as plain types, without the paths that this run chose itself."""
        assert self.subcommand is not None
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False, skip_validation=True)
        config = yaml.safe_load(text)
        for key in ("config", "ckpt_path"):
            config.pop(key, None)
        config["trainer"].pop("default_root_dir", None)
        return config

    # ---- building

    def instantiate_classes(self) -> None:
        if self.finished:
            return
        try:
            super().instantiate_classes()
        except ValueError as error:
            if of_ours(error) is None and self.refusals.first is not None:
                raise self.refusals.first from error
            raise
        self._require_segmentation()

    def _require_segmentation(self) -> None:
        """Predictions and acquisitions are of labels; a method that has none says so before it begins."""
        assert self.subcommand is not None
        if isinstance(self.model, Method):
            return
        name = type(self.model).__name__
        if self.subcommand == "predict":
            raise AdaptSegError(f"{name} predicts no labels: `adaptseg predict` needs a method of segmentation")
        if self.config[self.subcommand].get("active") is not None:
            raise AdaptSegError(f"{name} learns from no labels, so there are none to buy: leave out `active:`")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        # Lightning appends None for an absent `active:` block. An acquisition must run before the house callbacks,
        # which report on it; Lightning itself moves the checkpoints to the end.
        self.loggers = self._make_loggers()
        config["callbacks"] = [
            *(callback for callback in callbacks if callback is not None),
            *(config.get("callbacks") or []),
            *([] if config.get("enable_progress_bar") is False else [RunProgress()]),
            *self._house_callbacks(),
        ]
        config["logger"] = self.loggers
        if self.subcommand != "fit":
            config["enable_checkpointing"] = False
        config["strategy"] = _strategy(config)
        config["plugins"] = [*with_slurm(_as_list(config.get("plugins"))), AtomicCheckpointIO()]
        try:
            return Trainer(**config)
        except (MisconfigurationException, ValueError) as error:
            raise AdaptSegError(f"trainer: {' '.join(str(error).split())}") from error

    def _house_callbacks(self) -> list[Callback]:
        if self.subcommand == "predict":
            return [PredictionWriter(self.options.certainty)]
        if self.subcommand != "fit":
            return []
        folder = self.folder / "checkpoints"
        # Two checkpoints: one that monitors a metric would not save the last state when the metric does not improve.
        last = MovableCheckpoint(
            folder, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
        )
        metric, mode = self.model.monitor
        best = MovableCheckpoint(
            folder, "best", monitor=metric, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
        )
        has_val = getattr(self.datamodule, "val", None) is not None
        buys = self.config[self.subcommand].active is not None
        artifacts = [LabelArtifacts(logger) for logger in self.loggers if isinstance(logger, WandbLogger) and buys]
        # The report is the last that writes: its result.json marks a finished run.
        return [self.preemption, ValidationTimes(), Panels(), *artifacts, Report(), last, *([best] if has_val else [])]

    def _make_loggers(self) -> list[Logger]:
        if self.subcommand != "fit":
            return []
        if not self.options.wandb:
            return [CsvLogger(self.folder)]
        options = self.options
        view = wandb_run.wandb_logger(
            self.folder,
            self.plain_config,
            project=options.wandb_project,
            entity=options.wandb_entity,
            is_rank_zero=_is_rank_zero(),
        )
        return [CsvLogger(self.folder), view]

    # ---- after the verb

    def _run_subcommand(self, subcommand: str) -> None:
        if self.finished:
            say(f"{self.folder} is finished: nothing to do. --fresh starts over, --name NAME starts another")
            return
        try:
            super()._run_subcommand(subcommand)
        except Preempted as stop:
            self._say_stopped()
            self._leave(stop)
        except SystemExit as stop:  # Lightning's answer to SIGTERM, with code 0 as if all were done, and to Ctrl-C
            if subcommand == "fit":
                self._say_stopped()
            sys.exit(128 + (signal.SIGTERM if isinstance(stop, SIGTERMException) else signal.SIGINT))
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            reason = " ".join(str(error).split())[:300]
            checkpoint = self.config[subcommand].ckpt_path
            raise AdaptSegError(f"{checkpoint} holds another network than model.network makes: {reason}") from error
        if subcommand == "fit" and self.options.wandb:
            wandb_run.finish(0, preempted=False)

    def _say_stopped(self) -> None:
        say(f"stopped at step {self.trainer.global_step}; the same command resumes")

    def _leave(self, stop: Preempted) -> None:
        """Exit after a fit that was asked to stop. Rank zero alone says why: launchers kill the other processes as soon
        as one of them fails, and rank zero still has to upload and to requeue.
        """
        if not self.trainer.is_global_zero:
            sys.exit(0)
        if not stop.announced:
            sys.exit(128 + signal.SIGTERM)
        if self.options.wandb:
            wandb_run.finish(REQUEUE_CODE, preempted=True)
        self.preemption.requeue()  # last: SLURM ends the job at once
        sys.exit(REQUEUE_CODE)

    def after_fit(self) -> None:
        if self.trainer.global_step < self.trainer.max_steps:
            self._say_stopped()
            return
        say(f"finished. Everything lies in {self.folder}:")
        for name, what in (
            ("result.json", "scores and rounds"),
            ("metrics.csv", "every logged number"),
            ("rounds.csv", "the table of rounds"),
            ("labels", "what was bought"),
            ("pictures", "rounds, final predictions, mIoU over labels spent"),
            ("checkpoints/last.ckpt", "the trained networks"),
        ):
            if (self.folder / name).exists():
                say(f"  {name:22s} {what}")

    def after_test(self) -> None:
        write_scores(self.trainer, "test")

    def after_validate(self) -> None:
        write_scores(self.trainer, "val")

    def after_predict(self) -> None:
        say(f"predictions lie in {self.folder / 'predictions'}")


def _is_rank_zero() -> bool:
    """Also before the process group exists: Lightning reads the launcher's variables."""
    return getattr(rank_zero_only, "rank", 0) == 0


say = rank_zero_only(console.say)


def _strategy(config: dict[str, Any]) -> Any:
    """DDP without broadcasting buffers: ranks validate different numbers of scenes, and a broadcast in `forward` would
    wait for ranks that are already done. Batch norm is frozen or synchronised, so buffers agree by themselves.
    """
    strategy = config.get("strategy", "auto")
    devices = str(config.get("devices", "auto"))
    if devices in ("auto", "-1"):
        on_cpu = config.get("accelerator") == "cpu"
        devices = "1" if on_cpu else str(max(torch.cuda.device_count(), 1))
    many = config.get("num_nodes", 1) > 1 or devices not in ("1", "[0]")
    return DDPStrategy(broadcast_buffers=False) if strategy in ("auto", "ddp") and many else strategy


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
