"""`adaptseg VERB`: help and errors without torch; the verbs of training in `lightning_cli`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from adaptseg import __version__
from adaptseg.errors import AdaptSegError

VERBS = ("fit", "validate", "test", "predict", "measure", "export")

JOBS = {"measure": "adaptseg.measure", "export": "adaptseg.export"}
"""Verbs that train nothing -> the module whose `run` does them."""

HELP = f"""adaptseg {__version__}: segmentation models that must work in another domain, with no labels or very few

usage: adaptseg VERB --config RECIPE.yaml [--config OVERLAY.yaml ...] [--key.subkey VALUE ...]

verbs
  fit        train; buys labels if the recipe has an `active:` block; resumes where it was interrupted
  validate   score the last state of a run on the tuning split (data.val)
  test       score it on the split that tables report (data.test)
  predict    write predictions/<key>.png (train ids) for data.predict, data.test or data.val
  measure    compare large and small network of a finished DUDA stage 1 on the target training images
  export     write one network of a run as safetensors, ONNX and torch.export, checked against the module

where a run lives: RUNS/<recipe>/<name>/ with config, labels, checkpoints, metrics.csv, pictures
  --runs DIR      default: runs
  --name NAME     default: seed<k>
  --root DIR      where the data lies that an overlay of configs/data names
  --fresh         rename an existing run directory and start over            (fit)
  --wandb         also log to Weights & Biases, offline without an API key   (fit)
  --certainty     also write <key>.certainty.png, uint8 per cent             (predict)
  --ckpt_path P   another checkpoint than the run's last                     (validate, test, predict)

where those two find and leave things
  --checkpoint P  a run directory or a checkpoint                            (measure, export)
  --output P      the JSON of measure; the folder of export                  (measure, export)
  --large P       another run's large network; --large-network NAME of it    (measure)
  --divergence    also the mean KL of large and small network per class      (measure)
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
    """Entry point; returns the exit code: 0 done, 2 for an error that the user can mend."""
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
        _run(arguments[0], arguments[1:])
    except Exception as error:
        ours = _of_ours(error)
        if ours is None:
            raise
        # An error raised in a loader process carries that process's traceback; its last line is the message.
        return _fail(str(ours).strip().splitlines()[-1].removeprefix(f"{AdaptSegError.__module__}.AdaptSegError: "))
    return 0


def _run(verb: str, arguments: Sequence[str]) -> None:
    # Imported here: torch and lightning take three seconds that help does not need.
    if verb in JOBS:
        importlib.import_module(JOBS[verb]).run(arguments)
    else:
        from adaptseg.lightning_cli import run

        run(verb, arguments)


def _fail(message: str) -> int:
    print(f"adaptseg: error: {message}", file=sys.stderr)  # noqa: T201
    return 2


def _of_ours(error: BaseException | None) -> AdaptSegError | None:
    """The outermost error of ours in a chain: while jsonargparse builds an object it wraps errors in its own."""
    while error is not None and not isinstance(error, AdaptSegError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


if __name__ == "__main__":
    sys.exit(main())
