"""Letters under a table: shared by exactly those configurations that do not differ significantly."""

from collections.abc import Sequence
from itertools import combinations

import numpy
import pytest

from experiments.statistics.contrasts import pairs
from experiments.statistics.significance import Comparison, Effect, Score, letters


def compared(order: str, significant: Sequence[str], untested: str = "") -> Comparison:
    """All pairs of configurations, best first; significant ones as two letters, untested configurations."""
    effects = []
    for contrast in pairs(order):
        verdict = any(set(pair) == set(contrast.weights) for pair in significant)
        effects.append(Effect(contrast, 1.0, significant=None if set(untested) & set(contrast.weights) else verdict))
    scores = tuple(Score(label, 2, 60.0 - i, None) for i, label in enumerate(order))
    return Comparison(50, 50, scores, tuple(effects))


@pytest.mark.parametrize(
    ("significant", "expected"),
    [
        ((), "a a a a"),
        (("ps", "qs", "rs"), "a a a b"),
        (("pr", "ps", "qs"), "a ab bc c"),
        # The best does not differ from the worst, the second does: two letters at both ends.
        (("qs",), "ab a ab b"),
        (("pq", "pr", "ps", "qr", "qs", "rs"), "a b c d"),
    ],
)
def test_letters_of_cases_worked_by_hand(significant: Sequence[str], expected: str) -> None:
    comparison = compared("pqrs", significant)
    assert list(letters(comparison).values()) == expected.split()
    given = Comparison(50, 50, comparison.scores[::-1], comparison.effects)
    assert list(letters(given).items()) == list(letters(comparison).items())[::-1], "a is the best, wherever it stands"


def test_letters_are_shared_exactly_by_what_does_not_differ() -> None:
    generator = numpy.random.default_rng(4)
    for size in range(2, 9):
        labels = "ABCDEFGH"[:size]
        significant = [a + b for a, b in combinations(labels, 2) if generator.random() < 0.5]
        given = letters(compared(labels, significant))
        for a, b in combinations(labels, 2):
            assert bool(set(given[a]) & set(given[b])) == (a + b not in significant)
        assert all(given.values())


def test_what_was_not_tested_has_no_letter() -> None:
    assert letters(compared("pqrs", ("pq", "rs"), untested="rs")) == {"p": "a", "q": "b", "r": "", "s": ""}
    assert set(letters(compared("pq", (), untested="pq")).values()) == {""}
