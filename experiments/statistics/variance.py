"""How much mIoU varies from one trained model to another, and beside the level of the model.

Shapes: C configurations that are the same S trained models.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy

from experiments.statistics.counts import Floats


class Group(NamedTuple):
    """Configurations that are the same trained models, and their scores (C, S), one column for each model."""

    configurations: tuple[str, ...]
    scores: Floats


class Variance(NamedTuple):
    """An estimate of a variance and its degrees of freedom."""

    value: float
    freedom: int


def groups_of(configurations: Mapping[str, Sequence[tuple[str, float]]]) -> list[Group]:
    """Configurations, each as (model, score), by the set of their models; one where a model stands twice is alone."""
    found: dict[object, dict[str, dict[str, float]]] = {}
    for name, scored in configurations.items():
        by_model = dict(scored)
        if len(by_model) == len(scored):
            found.setdefault(frozenset(by_model), {})[name] = by_model
        else:
            found[name] = {name: {str(number): score for number, (_, score) in enumerate(scored)}}
    return [
        Group(
            tuple(group),
            numpy.array([[line[model] for model in next(iter(group.values()))] for line in group.values()]),
        )
        for group in found.values()
    ]


def between_models(groups: Sequence[Group]) -> Variance | None:
    """Variance between the models of a configuration, pooled over groups with S - 1 degrees of freedom each.

    That of a group is the mean over its configurations: the same models once more tell little that is new. None where
    no group has two models.
    """
    freedom = sum(group.scores.shape[1] - 1 for group in groups)
    if freedom == 0:
        return None
    squares = sum(float(group.scores.var(axis=1).mean()) * group.scores.shape[1] for group in groups)
    return Variance(squares / freedom, freedom)


def beside_models(groups: Sequence[Group]) -> Variance | None:
    """Variance of scores without the means of their configuration and model, pooled over groups.

    Each has (C - 1) (S - 1) degrees of freedom. None where no group has two configurations of two models.
    """
    freedom = sum((group.scores.shape[0] - 1) * (group.scores.shape[1] - 1) for group in groups)
    if freedom == 0:
        return None
    squares = 0.0
    for _, scores in groups:
        left = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
        squares += float((left**2).sum())
    return Variance(squares / freedom, freedom)
