"""`adaptseg VERB`: help and errors without torch; the verbs of training in `lightning_cli`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from adaptseg import __version__
from adaptseg.errors import AdaptSegError, of_ours

VERBS = ("fit", "validate", "test", "predict", "job", "data", "export")

OWN = {"job": "adaptseg.job_verb", "export": "adaptseg.export"}
"""Verbs that train nothing -> the module whose `run` does them; the others are those of `lightning_cli`."""

HELP = f"""adaptseg {__version__}: segmentation models that must work in another domain, with no labels or very few

usage: adaptseg VERB --config RECIPE.yaml [--config OVERLAY.yaml ...] [--key.subkey VALUE ...]

verbs
  fit        train; buys labels if the recipe has an `active:` block; resumes where it was interrupted
  validate   score the last state of a run on the tuning split (data.val)
  test       score it on the split that tables report (data.test)
  predict    write predictions/<key>.png (train ids) for data.predict, data.test or data.val
  job        run a recipe's `job:` block: the light work between the trainings of a staged recipe
  data check read every label file of a recipe's `data:`: counts, sizes, label values, class frequencies, what is broken
               --workers N   processes; default: one per core
               --images      decode the images too, not only their headers
               -o PICTURE    of the class frequencies; default: class_frequencies.png
  data show  a contact sheet of scenes with their labels over them
               -n COUNT      scenes, shared out over the splits; default: 12
               -o PICTURE    default: sheet.png
  export     write one network of a run as safetensors, ONNX and torch.export, checked against the module

where a run lives: RUNS/<recipe>/<name>/ with config, labels, checkpoints, metrics.csv, pictures
  --runs DIR      default: runs
  --name NAME     default: seed<k>
  --root DIR      where the data lies that an overlay of configs/data names
  --fresh         rename an existing run directory and start over            (fit)
  --wandb         also log to Weights & Biases, offline without an API key   (fit)
  --wandb_project P, --wandb_entity E   where there; or WANDB_PROJECT, WANDB_ENTITY
  --preempt_signal S   what announces a preemption: save, stop with code 75  (fit; default USR1)
  --certainty     also write <key>.certainty.png, uint8 per cent             (predict)
  --ckpt_path P   another checkpoint than the run's last                     (validate, test, predict)
  --folder DIR    exactly this run directory instead of RUNS/<recipe>/<name>/
  --stage NAME    which training of a staged recipe; default: the last       (validate, test, predict)

a staged recipe (`stages:`) is fitted stage by stage, each in RUNS/<recipe>/<name>/<stage>/; the same command skips what
is done. Flags lie over all stages, --stages.NAME.KEY over one

what is exported, and where to
  --checkpoint P  a run directory or a checkpoint                            (export)
  --output P      a folder                                                   (export)
  --network NAME  which network of the checkpoint; default: student          (export)
  --formats F ..  of safetensors, onnx, pt2; default: all                    (export)
  --size H W      image size to count, time and check at                     (export)
  --beside P      a run whose network is timed beside; default: its own      (export)

every key of a recipe is a flag too: --trainer.max_steps 4000 --data.batch_size 4 --active.budget 0.1
  adaptseg fit --help              keys of the trainer and how to see those of a class
  adaptseg fit --model.help Supervised, --data.help DomainPair, --active.help CBDA
  adaptseg fit --config RECIPE.yaml --print_config
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 when `data check` found something wrong, 2 for an error that the
    user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")  # noqa: T201
        return 0
    if arguments[0] == "--version":
        print(__version__)  # noqa: T201
        return 0
    if arguments[0] not in VERBS:
        return _fail(f"unknown verb '{arguments[0]}'; one of {', '.join(VERBS)} is expected (see adaptseg --help)")
    try:
        return _run(arguments[0], arguments[1:])
    except Exception as error:
        ours = of_ours(error)
        if ours is None:
            raise
        # An error raised in a loader process carries that process's traceback; its last line is the message.
        return _fail(str(ours).strip().splitlines()[-1].removeprefix(f"{AdaptSegError.__module__}.AdaptSegError: "))


def _run(verb: str, arguments: Sequence[str]) -> int:
    # Each is imported here: torch and lightning take three seconds that help does not need.
    if verb == "data":
        from adaptseg.data_verbs import run as look  # numpy, pillow and matplotlib, but not torch

        return look(arguments)
    from adaptseg import stages
    from adaptseg.allocation import keep_freed_memory

    keep_freed_memory()
    if stages.is_staged(arguments):
        from adaptseg.staged_run import run_staged

        return run_staged(verb, arguments)
    importlib.import_module(OWN.get(verb, "adaptseg.lightning_cli")).run(verb, arguments)
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"adaptseg: error: {message}\n")  # one write (`print` makes two): several processes may say it
    return 2


if __name__ == "__main__":
    sys.exit(main())
