"""Pictures of a run: what each round scored and bought, final predictions, and mIoU over labels spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adaptseg.active.advice import expected_gain, learning_curve
from adaptseg.active.rounds import Acquisition
from adaptseg.callbacks.curves import class_weight_curves
from adaptseg.callbacks.report import Report
from adaptseg.classes import VOID, ClassTable
from adaptseg.data.batch import Labelled
from adaptseg.data.pair import DomainPair, pair_of
from adaptseg.data.transforms import resized_image
from adaptseg.methods import Method

SCENES = 4
"""Rows of a picture."""

Picture = NDArray[Any]


class Panels(Callback):
    """Writes round_NN.png, final.png, class_weights.png and curve.png to `pictures/`; W&B gets copies. Stateless."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        acquisition = _acquisition(trainer)
        if acquisition is None or not acquisition.snapshots:
            return
        data = pair_of(trainer)
        rows = [_round_row(acquisition, data, key) for key in acquisition.snapshots]
        acquisition.snapshots = {}
        titles = ["target image", "truth", "prediction", "score", "bought so far"]
        _save(trainer, _grid(titles, rows), f"round_{acquisition.round:02d}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Comes also when a resume finds no step left to train, unlike `on_train_end`.
        if not trainer.is_global_zero or trainer.global_step < trainer.max_steps:
            return
        data = pair_of(trainer)
        if data.val is not None and isinstance(pl_module, Method):
            keys = data.val.keys[:: max(1, len(data.val.keys) // SCENES)][:SCENES]
            rows = [_final_row(pl_module, data, key) for key in keys]
            _save(trainer, _grid(["image", "truth", "prediction", "wrong pixels"], rows), "final")
        curves = class_weight_curves(Path(trainer.default_root_dir) / "metrics.csv", data.class_table)
        if curves is not None:
            _save(trainer, curves, "class_weights")
        acquisition = _acquisition(trainer)
        report = next((c for c in trainer.callbacks if isinstance(c, Report)), None)  # pyright: ignore
        scores = report.result["val"] if report and report.result else None
        if acquisition is not None and acquisition.history and scores:
            _save(trainer, _curve(acquisition.history, scores["miou"]), "curve")


def _acquisition(trainer: Trainer) -> Acquisition | None:
    return next((c for c in trainer.callbacks if isinstance(c, Acquisition)), None)  # pyright: ignore


def _round_row(acquisition: Acquisition, data: DomainPair, key: str) -> list[Picture]:
    prediction, score = acquisition.snapshots[key]
    table, size = data.class_table, prediction.shape
    image = resized_image(data.pool.image(key), size).permute(1, 2, 0).numpy()
    truth = acquisition.oracle.truth(key, size)  # an oracle that is a person has none
    bought = acquisition.store.bought(key, acquisition.round)
    labels = acquisition.store.labels(key, acquisition.round)
    shown = (image * 0.35).astype(np.uint8)
    shown[bought] = table.colorize(labels[bought])
    blank = np.zeros_like(image)
    return [image, blank if truth is None else table.colorize(truth), table.colorize(prediction), score, shown]


def _final_row(module: LightningModule, data: DomainPair, key: str) -> list[Picture]:
    assert data.val is not None
    batch = next(iter(data._evaluation_loader(data.val, [key], with_labels=True)))
    assert isinstance(batch, Labelled)
    labels = batch.labels[0].numpy()
    was_training = module.training
    module.eval()
    with torch.no_grad():
        probabilities = module.predict_probabilities(batch.image.to(module.device), size=labels.shape)  # pyright: ignore
    module.train(was_training)
    prediction = probabilities[0, 0].argmax(0).cpu().numpy()
    return [data.val.image(key), _color(data, labels), _color(data, prediction), _errors(labels, prediction)]


def _color(data: DomainPair, labels: NDArray[np.int64]) -> Picture:
    table: ClassTable = data.class_table
    return table.colorize(labels)


def _errors(labels: NDArray[np.int64], prediction: NDArray[np.int64]) -> Picture:
    """Right pixels dark, wrong ones red, void grey."""
    picture = np.full((*labels.shape, 3), 20, np.uint8)
    picture[prediction != labels] = (230, 60, 50)
    picture[labels == VOID] = 90
    return picture


def _grid(titles: list[str], rows: list[list[Picture]]) -> Figure:
    """Rows of pictures under column titles; two-dimensional arrays are drawn as heat maps."""
    height, width = rows[0][0].shape[:2]
    cell = 3.4
    figure = Figure(
        figsize=(cell * len(titles), cell * height / width * len(rows) + 0.35), dpi=110, layout="constrained"
    )
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, pictures in zip(axes, rows, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            # Class weights spread scores over decades; the power keeps those of saturated classes visible.
            norm = PowerNorm(0.3) if picture.ndim == 2 else None
            axis.imshow(picture, cmap="magma", norm=norm, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11)
    return figure


def _curve(history: list[dict[str, Any]], final_miou: float) -> Figure:
    """mIoU of the network over the share of the pool that it had been shown, and where half as much more would lead."""
    spent, miou = learning_curve(history, final_miou)
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.plot([100 * share for share in spent], [100 * value for value in miou], marker="o")
    beyond = np.linspace(0, min(spent[-1] / 2, 1 - spent[-1]), 9)[1:]
    gains = [expected_gain(spent, miou, further=float(share)) for share in beyond] if beyond[-1] > 0 else []
    if known := [gain for gain in gains if gain is not None]:
        shares = 100 * (spent[-1] + np.array([0, *beyond]))
        middle, low, high = 100 * (miou[-1] + np.array([(0, 0, 0), *known]).T)
        axis.plot(shares, middle, linestyle="--", color="C0")
        axis.fill_between(shares, low, high, alpha=0.2, color="C0", linewidth=0, label="expected, 90 % interval")
        axis.legend(loc="best", fontsize=9)
    axis.set_xlabel("labels spent, % of pool pixels")
    axis.set_ylabel("mIoU on the validation split, %")
    axis.grid(alpha=0.3)
    return figure


def _save(trainer: Trainer, figure: Figure, name: str) -> None:
    path = Path(trainer.default_root_dir) / "pictures" / f"{name}.png"
    if not trainer.is_global_zero:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=f"pictures/{name}", images=[str(path)])
