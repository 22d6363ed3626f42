"""How far the heat maps can be trusted: they must depend on the weights and on the class, and lie on the forgery.

A check that fails is a sentence for the picture itself, not only a number in a table.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from dftrack.data.cache import Split
from dftrack.data.pixel_file import read_rows
from dftrack.errors import DataError
from dftrack.learning.evaluation import Predictions
from dftrack.learning.explain import HeatMaps, maps_of, read_mask
from dftrack.learning.metrics import DEFAULT_THRESHOLD, FAKE, REAL
from dftrack.learning.model import FaceCNN

SAME_WITH_RANDOM_WEIGHTS = 0.5  # mean rank correlation from which on a map is the picture's, not the network's
SAME_FOR_BOTH_CLASSES = 0.9  # ... from which on a map says nothing about the class
SURE = 0.01  # error probability of the tests that compare with chance
FEWEST = 8  # pictures with a map below which nothing is claimed
PICTURES = 32  # examined per check
DRAWS = 5  # of random weights: one alone may look like any network

Told = Callable[[int, int], None]  # (done, of how many)
_Ranks = list[NDArray[np.float64] | None]  # of each picture's map; None: it ranks nothing


@dataclass(frozen=True, slots=True)
class Check:
    """One sanity check. `passed` is None where too few pictures allow a verdict."""

    name: str
    value: float | None
    limit: float
    n: int  # pictures it rests on
    passed: bool | None
    warning: str  # what to write beside the maps if it failed
    draws: int = 1  # of random weights; `value` is their median


@dataclass(frozen=True, slots=True)
class MaskAgreement:
    """How the heat for "fake" of n forged pictures lies to their masks. Means over the pictures; None: n = 0."""

    n: int
    flat: int  # further pictures whose map points nowhere: left out
    energy: float | None  # share of the heat inside the mask, [0, 1]
    area: float | None  # share of the picture inside the mask, [0, 1]: what heat spread evenly would give
    lift: float | None  # energy / area of each picture; 1 = as an even map
    pointing: float | None  # share of pictures whose hottest place lies inside the mask; chance is `area`
    p_value: float | None  # of energy being no more than area (Wilcoxon signed-rank, one-sided); None if n < FEWEST


@dataclass(frozen=True, slots=True)
class Trust:
    """All that was found out about the maps of one model on one split."""

    checks: tuple[Check, ...]
    right: MaskAgreement  # fakes that were caught
    wrong: MaskAgreement  # fakes that were missed

    @property
    def warnings(self) -> tuple[str, ...]:
        """The sentences of the checks that failed."""
        return tuple(check.warning for check in self.checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """What can be said of the maps, in one sentence."""
        made = sum(check.passed is not None for check in self.checks)
        if self.warnings:
            return "; ".join(self.warnings) + "."
        if not made:
            return "No check could be made: too few pictures."
        if made < len(self.checks):
            return f"{made} of {len(self.checks)} checks were passed; for the others there are too few pictures."
        return "Every check was passed."


def examine(
    model: FaceCNN,
    splits: Sequence[Split],
    predictions: Sequence[Predictions],
    *,
    threshold: float = DEFAULT_THRESHOLD,
    seed: int = 0,
    progress: Told = lambda done, total: None,
) -> list[Trust]:
    """Run every check on a seeded choice of pictures of each split; `predictions` are the model's on it.

    Masks are looked at for fakes only, caught and missed ones apart, as far as a split has masks. `progress` is told
    how many batches of maps have been made; an exception it raises ends the work.
    """
    draws = [np.random.default_rng(seed) for _ in splits]
    some = [np.sort(rng.permutation(len(found))[:PICTURES]) for rng, found in zip(draws, predictions, strict=True)]
    pictures = [read_rows(split.pixels, rows) for split, rows in zip(splits, some, strict=True)]
    maps = check_maps(model, pictures, seed=seed, progress=progress)
    found = []
    for split, scored, checks, rng in zip(splits, predictions, maps, draws, strict=True):
        fakes = np.array([i for i in np.flatnonzero(scored.labels == FAKE) if split.masks[i]], dtype=int)
        caught = scored.scores[fakes] >= threshold
        groups = (rng.permutation(fakes[caught])[:PICTURES], rng.permutation(fakes[~caught])[:PICTURES])
        right, wrong = (_agreement_on(model, split, np.sort(group)) for group in groups)
        masks = [_check_masks(right)] if right.p_value is not None else []
        found.append(Trust(checks=(check_skill(scored), *checks, *masks), right=right, wrong=wrong))
    return found


def check_skill(predictions: Predictions) -> Check:
    """Does the network tell the classes apart at all? Without skill, as with random weights, no map explains any.

    One-sided Mann-Whitney test of the scores of fakes against those of reals, a mean score for each group (scene,
    video, person) and class, since pictures of a group are not independent; the value is its p.
    """
    fakes, reals = (_group_means(predictions, label) for label in (FAKE, REAL))
    warning = "not to be trusted: the network does no better than chance here"
    if min(len(fakes), len(reals)) < FEWEST or not np.all(np.isfinite(predictions.scores)):
        return Check("better than chance", None, SURE, len(predictions), None, warning)
    p = float(stats.mannwhitneyu(fakes, reals, alternative="greater").pvalue)
    return Check("better than chance", p, SURE, len(predictions), p < SURE, warning)


def _group_means(predictions: Predictions, label: int) -> NDArray[np.float64]:
    """(g,) the mean score of each group's pictures of a class."""
    of = np.flatnonzero(predictions.labels == label)
    _, group = np.unique([predictions.groups[place] for place in of], return_inverse=True)
    return np.bincount(group, weights=predictions.scores[of]) / np.bincount(group)


def check_maps(
    model: FaceCNN,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    target: int = FAKE,
    seed: int = 0,
    progress: Told = lambda done, total: None,
) -> list[list[Check]]:
    """Do the maps change when the weights are drawn anew, and when the other class is asked for?

    pictures: of each split (n, S, S, 3) uint8; of no pictures, no checks. A check's value is the mean Spearman
    correlation of the two maps over the pictures where both point somewhere: 1 = the same map. For random weights it
    is the median over DRAWS draws, without sign: a map turned inside out is the same map. A draw serves all splits.
    Source: Adebayo et al. 2018, "Sanity checks for saliency maps".
    """
    made = 0

    def ranked(network: FaceCNN, asked: int) -> list[_Ranks]:
        nonlocal made
        ranks = []
        for pixels in pictures:
            progress(made, (2 + DRAWS) * len(pictures))
            ranks.append(_ranks(maps_of(network, pixels, asked)) if len(pixels) else [])
            made += 1
        return ranks

    maps = ranked(model, target)
    others = ranked(model, REAL if target == FAKE else FAKE)
    draws = [
        [_correlations(*two) for two in zip(maps, ranked(randomised(model, seed + draw), target), strict=True)]
        for draw in range(DRAWS)
    ]
    return [
        [_check_weights([draw[place] for draw in draws]), _check_class(_correlations(maps[place], others[place]))]
        if len(pixels)
        else []
        for place, pixels in enumerate(pictures)
    ]


def randomised(model: FaceCNN, seed: int) -> FaceCNN:
    """A copy of `model` with every weight drawn anew, as before training. torch's generators go on undisturbed."""
    device = next(model.parameters()).device
    stranger = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for part in stranger.modules():
            if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                part.reset_parameters()
    return stranger.to(device)


def similarity(first: HeatMaps, second: HeatMaps) -> NDArray[np.float64]:
    """Spearman correlation in [-1, 1] of the two maps of each picture, (m,).

    Left out are pictures of which a map is flat or the same everywhere: it ranks nothing.
    """
    return _correlations(_ranks(first), _ranks(second))


def _ranks(maps: HeatMaps) -> _Ranks:
    return [None if flat else _ranks_of(heat) for heat, flat in zip(maps.heat, maps.flat, strict=True)]


def _ranks_of(heat: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """(S * S,) the ranks of a map, about their mean and of length 1; the product of two is their correlation."""
    ranks = stats.rankdata(heat.ravel().astype(np.float64))  # SciPy 1.18 gives ranks the type of what they rank
    ranks -= ranks.mean()
    length = np.linalg.norm(ranks)
    return ranks / length if length else None


def _correlations(first: _Ranks, second: _Ranks) -> NDArray[np.float64]:
    both = ((a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)
    return np.array([a @ b for a, b in both], dtype=float).clip(-1, 1)


def mask_agreement(heat: NDArray[np.float32], masks: NDArray[np.bool_]) -> MaskAgreement:
    """Energy inside the mask, its lift over the mask's area, and the pointing game.

    heat: (n, S, S) of at least 0; masks: (n, S, S). A map that is all 0 is counted as flat; an empty or full mask has
    no inside to hit, and its picture is left out. Several equally hottest places count by the share of them inside.
    Source: energy-based pointing game, Wang et al. 2020; pointing game, Zhang et al. 2018 (without tolerance).
    """
    places = int(np.prod(heat.shape[1:]))
    heat, masks = heat.reshape(-1, places).astype(np.float64), masks.reshape(-1, places)  # (n, S * S)
    usable = masks.any(axis=1) & ~masks.all(axis=1)
    flat = usable & ~heat.any(axis=1)
    heat, masks = heat[usable & ~flat], masks[usable & ~flat]
    if not len(heat):
        return MaskAgreement(0, int(flat.sum()), None, None, None, None, None)
    energy = (heat * masks).sum(axis=1) / heat.sum(axis=1)
    area = masks.mean(axis=1)
    hottest = heat == heat.max(axis=1, keepdims=True)
    pointing = (hottest & masks).sum(axis=1) / hottest.sum(axis=1)
    return MaskAgreement(
        n=len(heat),
        flat=int(flat.sum()),
        energy=float(energy.mean()),
        area=float(area.mean()),
        lift=float((energy / area).mean()),
        pointing=float(pointing.mean()),
        p_value=_p_above(energy - area),
    )


def _p_above(differences: NDArray[np.float64]) -> float | None:
    if len(differences) < FEWEST:
        return None
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, alternative="greater").pvalue)


def _agreement_on(model: FaceCNN, split: Split, places: NDArray[np.int64]) -> MaskAgreement:
    """mask_agreement of the pictures of `split` at `places`, which all have masks."""
    size = split.pixels.shape[1]
    masks: dict[int, NDArray[np.bool_]] = {}
    for place in places.tolist():
        if mask := split.masks[place]:
            with contextlib.suppress(DataError):  # one that cannot be read is none; the audit names it
                masks[place] = read_mask(mask, size)
    if not masks:
        return mask_agreement(np.empty((0, size, size), np.float32), np.empty((0, size, size), bool))
    maps = maps_of(model, read_rows(split.pixels, list(masks)), FAKE)
    return mask_agreement(maps.heat, np.stack(list(masks.values())))


def _check_masks(right: MaskAgreement) -> Check:
    passed = right.p_value is not None and right.p_value < SURE
    warning = "not to be trusted: the heat lies on the forged area no more than chance"
    return Check("heat on the forged area", right.p_value, SURE, right.n, passed, warning)


def _check_class(alike: NDArray[np.float64]) -> Check:
    warning = "not to be trusted: the maps for real and fake are the same"
    if len(alike) < FEWEST:
        return Check("other class", None, SAME_FOR_BOTH_CLASSES, len(alike), None, warning)
    value = float(alike.mean())
    return Check("other class", value, SAME_FOR_BOTH_CLASSES, len(alike), value < SAME_FOR_BOTH_CLASSES, warning)


def _check_weights(draws: Sequence[NDArray[np.float64]]) -> Check:
    """No verdict unless most draws leave enough pictures with both maps."""
    alike = [found for found in draws if len(found) >= FEWEST]
    name, limit = "random weights", SAME_WITH_RANDOM_WEIGHTS
    warning = "not to be trusted: random weights give the same maps"
    if 2 * len(alike) <= len(draws):
        return Check(name, None, limit, 0, None, warning, len(draws))
    value = float(np.median([abs(found.mean()) for found in alike]))
    return Check(name, value, limit, min(map(len, alike)), value < limit, warning, len(alike))


def marked(warnings: Sequence[str]) -> str:
    """The one line for a picture's heading: the first warning, and how many more there are."""
    if not warnings:
        return ""
    more = f" (+{len(warnings) - 1} more)" if len(warnings) > 1 else ""
    return warnings[0] + more
