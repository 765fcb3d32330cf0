"""The rows of the table of departures: what the release does, what is done here, and the cell that says what it changes
(departures.py). Cells are written from the measurements alone; a row whose measurement is missing has an empty one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Measured = Mapping[str, Any]
"""What the groups of departures.py have measured, by the group's name."""


@dataclass(frozen=True)
class Departure:
    """One row; `effect` reads the measurements and raises KeyError where they are missing."""

    release: str
    here: str
    to_get: str
    effect: Callable[[Measured], str]


def markdown(measured: Measured) -> str:
    lines = ["| the release | here by default | to get the release's | what it changes here |", "|---|---|---|---|"]
    for row in DEPARTURES:
        try:
            effect = row.effect(measured)
        except KeyError:
            effect = ""
        lines.append(f"| {row.release} | {row.here} | {row.to_get} | {effect} |")
    return "\n".join(lines)


# ---- how numbers are written


def mean(values: Sequence[float], form: str = "{:.0f}") -> str:
    """Of values of one kind, heads or images."""
    return form.format(statistics.mean(values))


def change(values: Sequence[float], reference: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation of the difference, head by head."""
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    return f"{statistics.mean(differences):+.{digits}f} ± {statistics.stdev(differences):.{digits}f}"


def of(rows: Sequence[Mapping[str, Any]], *path: str) -> list[float]:
    """One number of every head; those without it are left out."""
    found = []
    for row in rows:
        value: Any = row
        for name in path:
            value = value[name]
        if value is not None:
            found.append(value)
    return found


def both(measured: Measured, name: str, *path: str, form: str = "{:.0f}") -> str:
    """A number of the score groups on MobileNetV2's features / on the denoiser's."""
    kinds = (measured["scores_encoder"], measured["scores_denoiser"])
    return " / ".join(mean(of(kind[name], *path), form) for kind in kinds)


def picks(measured: Measured, name: str) -> str:
    """What a score's departure does to the 37 picks."""
    balance = [both(measured, name, who, "balance", form="{:.2f}") for who in ("released", "formula")]
    void = [both(measured, name, who, "void") for who in ("released", "formula")]
    return (
        f"{both(measured, name, 'in_common')} % of the picks in common; their balance {balance[0]} instead of "
        f"{balance[1]}, void {void[0]} % instead of {void[1]} %"
    )


def trained(measured: Measured, name: str) -> str:
    """Change of mIoU against heads trained as the package does."""
    group = measured["training"]
    return f"{change(group[name]['miou'], group['reference']['miou'])} points of mIoU"


# ---- the cells


def released_edald(m: Measured) -> str:
    name = "edald_released"
    return (
        f"Spearman {both(m, name, 'spearman', form='{:.4f}')}; {picks(m, name)}. Either is nearly the entropy, "
        f"Spearman {both(m, name, 'entropy_and_formula', form='{:.4f}')} with the formula: the information is "
        f"{both(m, name, 'information', form='{:.3f}')} nats beside "
        f"{both(m, name, 'entropy', form='{:.2f}')} of entropy"
    )


def balanced_entropy(m: Measured) -> str:
    name = "balanced_entropy_nan"
    images = mean(of(m["scores_encoder"][name], "images"))
    return f"the first 37 candidates, from {images} images; {picks(m, name)}"


def author_denominator(m: Measured) -> str:
    name = "balanced_entropy_released"
    share = both(m, name, "negative_denominator")
    common = [of(m[f"scores_{kind}"][name], "in_common") for kind in ("encoder", "denoiser")]
    ranges = " / ".join(f"{min(values):.0f} to {max(values):.0f}" for values in common)
    return (
        f"Spearman {both(m, name, 'spearman', form='{:.2f}')}; {ranges} % of the picks in common, head by head. The "
        f"denominator is negative at {share} % of the candidates, which moves them from the last places to just behind "
        "those of positive balance"
    )


def dropout_off(m: Measured) -> str:
    name = "ebald_without_dropout"
    return (
        f"BALD: {picks(m, 'bald_without_dropout')}. eBALD becomes the entropy: Spearman "
        f"{both(m, name, 'spearman', form='{:.3f}')}, {both(m, name, 'in_common')} % in common"
    )


def pareto(m: Measured) -> str:
    correlation = [both(m, "pareto", noise, form="{:.2f}") for noise in ("pareto", "gumbel")]
    worth = [both(m, "pareto", f"{noise}_picks", form="{:.1f}") for noise in ("pareto", "gumbel")]
    return (
        f"Spearman with the information {correlation[0]} instead of {correlation[1]}; the picks have {worth[0]} times "
        f"the candidates' mean information instead of {worth[1]}"
    )


def float16(m: Measured) -> str:
    small, large = (m["herding"][name] for name in ("float16", "float16_larger"))

    def one(found: Mapping[str, Any]) -> str:
        return (
            f"{found['picks']} of {found['candidates']:,}: {mean(found['tied'])} % of the picks tie exactly, "
            f"{mean(found['in_common'])} % in common, {mean(found['advantage'])} % of the advantage over random left"
        )

    return f"{one(small)}; {one(large)}"


def first_round(m: Measured) -> str:
    group = m["first_round"]
    names = {
        "unit_range": "[0, 1]",
        "fresh_noise": "noise",
        "one_timestep": "one timestep",
        "mispaired": "mispaired",
        "all": "all four",
    }
    common = ", ".join(f"{name} {group[key]['in_common']:.0f}" for key, name in names.items())
    left = ", ".join(f"{name} {group[key]['advantage']:.0f}" for key, name in names.items())
    return (
        f"per cent of the 37 picks in common: {common}; of herding's advantage over random, on the features of all "
        f"later rounds: {left} (random: 0 ± {statistics.stdev(group['random']):.0f})"
    )


def norm(m: Measured) -> str:
    return (
        f"every fourth row and column counted: {trained(m, 'norm_grid')}; labelled pixels alone: "
        f"{trained(m, 'norm_labelled')}"
    )


def denoiser_dropout(m: Measured) -> str:
    group = m["denoiser_dropout"]
    return (
        f"{change(group['on']['miou'], group['off']['miou'])} points of mIoU at 0.1 in training features (cosine to "
        f"the clean ones {mean(group['cosine'], '{:.3f}')}); this denoiser was trained without"
    )


def schedule(m: Measured) -> str:
    group = m["training"]
    # Batches without a label are no steps; 25 of the 50 passes were counted.
    stops, most = mean(group["reference"]["steps"]), 2 * statistics.mean(group["no_early_stop"]["steps"])
    return (
        f"it stops after {stops} of {most:,.0f} steps. Weights of the least loss instead: "
        f"{trained(m, 'best_weights')}; no early stop, 25 passes: {trained(m, 'no_early_stop')}; with one fall of the "
        f"rate: {trained(m, 'one_fall')}"
    )


def training_pixels(m: Measured) -> str:
    val = m["evaluation"]["val"]
    share = 100 * statistics.mean(val["training_pixels"]) / val["pixels"]
    return f"{change(val['with_training_pixels'], val['miou'], 2)} points of mIoU: {share:.2f} % more pixels"


def absent(m: Measured) -> str:
    def one(split: str, found: Mapping[str, Any]) -> str:
        if not found["absent"]:
            return f"{split} lacks no class: nothing"
        return f"{split} lacks {', '.join(found['absent'])}: {change(found['absent_as_zero'], found['miou'])} points"

    group = m["evaluation"]
    return f"{one('val', group['val'])}; {one('dusk', group['test'])}"


def pool_of_one(m: Measured) -> str:
    return f"41 labels instead of 185 after five rounds: {trained(m, 'pool_of_one')}"


def void(m: Measured) -> str:
    share = m["training"]["bought"]["ours"]["void"]
    return f"{trained(m, 'no_void')} at 185 labels, of which {share:.0f} % would have been void"


def chunks(m: Measured) -> str:
    group = m["herding"]["chunks"]

    def one(name: str) -> str:
        found = group[name]
        return (
            f"{mean(found['in_common'])} % of the picks in common (by chance {found['by_chance']:.0f}), "
            f"{mean(found['advantage'])} % of the advantage over random left"
        )

    return f"five chunks, half kept: {one('kept')}; 37 picks: {one('round')}"


def length_scale(m: Measured) -> str:
    found = m["herding"]["length_scale"]
    return (
        f"the length moves by {mean(found['spread'])} % in an image and {mean(found['local'])} % of its picks are in "
        f"common, {mean(found['local_advantage'])} % of the advantage over random left; "
        f"{mean(found['global'])} % of global herding's"
    )


def shared_seed(m: Measured) -> str:
    found = m["scores_denoiser"]["shared_seed"]
    return (
        f"eDALD if draw 1 is the fixed noise: Spearman {mean(of(found, 'spearman'), '{:.4f}')}, "
        f"{mean(of(found, 'in_common'))} % of the picks in common"
    )


def said(text: str) -> Callable[[Measured], str]:
    """A cell without a measurement."""
    return lambda measured: text


DEPARTURES = (
    Departure(
        "eDALD's first term is no mutual information (probabilities are exponentiated again)",
        "the formula",
        "`active.score: edald_released`",
        released_edald,
    ),
    Departure(
        "BalEntAcq is NaN everywhere, so candidates are bought in their order",
        "finite: `balanced_entropy` (noise), `balanced_entropy_dropout`",
        "not offered",
        balanced_entropy,
    ),
    Departure(
        "BalEntAcq's author counts the entropy twice in its denominator",
        "once, as in the paper",
        "`active.score: balanced_entropy_released`",
        author_denominator,
    ),
    Departure(
        "dropout is off in queries, so BALD ranks ties",
        "on: `bald`, `ebald`, `power_bald` with `model.training.dropout: 0.2`",
        "not offered; `configs/paper/edald/rows/chance.yaml` is random behind herding",
        dropout_off,
    ),
    Departure("power scores by Pareto noise", "Gumbel", "not offered", pareto),
    Departure("herding in each image computes in float16", "float32 from float16 features", "not offered", float16),
    Departure(
        "round 0 reads other features: images in [0, 1], fresh noise per image, one timestep, positions mispaired",
        "the same features in all rounds",
        "not offered",
        first_round,
    ),
    Departure(
        "batch norm counts all pixels of an image",
        "labelled and 64 others (`model.norm_pixels`)",
        "larger `norm_pixels`; `norm_statistics: labelled` is the other extreme",
        norm,
    ),
    Departure(
        "the denoiser's dropout, if it has any, is on in training features",
        "always off",
        "not offered",
        denoiser_dropout,
    ),
    Departure(
        "early stop by batches, last weights kept; the cosine swings up again",
        "the same",
        "the default; `model.training.patience`, `first_passes`, `half_period` change it",
        schedule,
    ),
    Departure("evaluation also counts training pixels", "no", "not offered", training_pixels),
    Departure("`keep_global` defaults to a pool of one pixel", "0.5, the scripts' value", "`active.keep`", pool_of_one),
    Departure(
        "void pixels are left out by the ground truth",
        "they may be bought and count as spent",
        "`active.forbid_void: true` (set in the paper recipes)",
        void,
    ),
    Departure(
        "Cityscapes: raw ids, id 19 void, files never pair",
        "train ids, paired by scene",
        "not offered",
        said("cannot run: no image finds its labels"),
    ),
    Departure(
        "global herding of large pools in random chunks with sampled conditions",
        "exact, all conditions",
        "not offered",
        chunks,
    ),
    Departure(
        "length scale from a global random state",
        "the same rule, drawn by image",
        "the rule: `active.length_scale: median`; not its random state",
        length_scale,
    ),
    Departure("fixed and fresh noise share a seed", "distinct streams", "not offered", shared_seed),
    Departure(
        "a query after the last evaluation", "none", "not offered", said("time alone: its pixels are never labelled")
    ),
    Departure(
        "single stage and random cannot be run",
        "`stages: [score]`, `all_pixels: true`",
        "not offered",
        said("nothing in a run; the rows without herding of *Almost no labels* could not be made"),
    ),
    Departure("a class absent from the split counts as IoU 0", "left out of the mean", "not offered", absent),
)
