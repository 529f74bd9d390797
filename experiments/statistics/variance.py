"""How much mIoU varies from one trained model to another, and beside the level of the model.

Shapes: C configurations that are the same S trained models.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy

from experiments.statistics.counts import Floats


class Group(NamedTuple):
    """Configurations that are the same trained models, those models, and scores (C, S), one column for each model."""

    configurations: tuple[str, ...]
    models: frozenset[str]
    scores: Floats


class Variance(NamedTuple):
    """An estimate of a variance and its degrees of freedom."""

    value: float
    freedom: int


def groups_of(configurations: Mapping[str, Sequence[tuple[str, float]]]) -> list[Group]:
    """Configurations, each as (model, score), by the set of their models.

    One where a model stands twice is a group of its own.
    """
    found: dict[object, list[str]] = {}
    for name, scored in configurations.items():
        models = frozenset(model for model, _ in scored)
        found.setdefault(models if len(models) == len(scored) else name, []).append(name)
    groups = []
    for names in found.values():
        ordered = [sorted(configurations[name]) for name in names]
        scores = numpy.array([[score for _, score in scored] for scored in ordered])
        groups.append(Group(tuple(names), frozenset(model for model, _ in ordered[0]), scores))
    return groups


def between_models(groups: Sequence[Group]) -> Variance | None:
    """Variance between the models of a configuration, pooled over all that have two or more.

    The same models once more tell little that is new. So groups that have models in common, directly or by way of
    others, count as one: the mean of their variances, weighted by S - 1 of each configuration, with the freedom of the
    largest alone. None where no group has two models.
    """
    freedom, squares = 0, 0.0
    for together in _sharing(groups):
        own = [(len(group.configurations), group.scores.shape[1] - 1) for group in together]
        weight = sum(count * free for count, free in own)
        if weight == 0:
            continue
        total = sum(float(group.scores.var(axis=1).sum()) * group.scores.shape[1] for group in together)
        largest = max(free for _, free in own)
        freedom += largest
        squares += largest * total / weight
    return Variance(squares / freedom, freedom) if freedom else None


def _sharing(groups: Iterable[Group]) -> list[list[Group]]:
    """The groups, those together that have models in common, directly or by way of others."""
    parts: list[tuple[frozenset[str], list[Group]]] = []
    for group in groups:
        met = [part for part in parts if part[0] & group.models]
        parts = [part for part in parts if not part[0] & group.models]
        models = group.models.union(*(models for models, _ in met))
        parts.append((models, [*(one for _, members in met for one in members), group]))
    return [members for _, members in parts]


def beside_models(groups: Sequence[Group]) -> Variance | None:
    """Variance of scores without the means of their configuration and model, pooled over groups as if alike in all.

    Each has (C - 1) (S - 1) degrees of freedom. None where no group has two configurations of two models.
    """
    freedom = sum((group.scores.shape[0] - 1) * (group.scores.shape[1] - 1) for group in groups)
    if freedom == 0:
        return None
    squares = 0.0
    for _, _, scores in groups:
        left = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
        squares += float((left**2).sum())
    return Variance(squares / freedom, freedom)
