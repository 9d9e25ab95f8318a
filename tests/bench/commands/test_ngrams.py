"""N-gram models against tiny texts worked by hand."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from bench.commands.ngrams import CHURCH_GALE, KNESER_NEY, WITTEN_BELL, perplexities, probabilities, unigram_perplexity

TEXT = np.array([0, 1, 0, 1, 2, 0, 1])  # a b a b c a b


def of_last(context: list[int], token: int, order: int, smoothing: str, vocabulary: int = 4) -> float:
    """p(token | context) of n-grams of TEXT."""
    return float(probabilities(TEXT, [np.array([*context, token])], vocabulary, order, smoothing)[order - 1][0][-1])


def test_frequencies_have_half_a_count_added():
    assert unigram_perplexity(TEXT, np.array([3, 0, 3]), 4) == pytest.approx(1 / math.sqrt(3.5 / 9 * 0.5 / 9))


@pytest.mark.parametrize(
    ("context", "token", "order", "by_hand"),
    [
        # one token: (c + 3 kinds / 4) / (7 + 3)
        ([], 0, 1, Fraction(3 * 4 + 3, 40)),
        ([], 3, 1, Fraction(3, 40)),
        # after b (a, c; the last b is followed by nothing): (c + 2 p(w)) / (2 + 2)
        ([1], 0, 2, (1 + 2 * Fraction(15, 40)) / 4),
        ([1], 3, 2, 2 * Fraction(3, 40) / 4),
        # after a, three times b: (3 + 1 p(b)) / (3 + 1); after d, never seen: p(w)
        ([0], 1, 2, (3 + Fraction(15, 40)) / 4),
        ([3], 1, 2, Fraction(15, 40)),
        # after c a, once b: (1 + 1 p(b|a)) / (1 + 1)
        ([2, 0], 1, 3, (1 + (3 + Fraction(15, 40)) / 4) / 2),
    ],
)
def test_witten_bell_by_hand(context: list[int], token: int, order: int, by_hand: Fraction):
    assert of_last(context, token, order, WITTEN_BELL) == pytest.approx(float(by_hand))


def test_kneser_ney_by_hand():
    """Pairs ab 3, ba 1, bc 1, ca 1: D = 3 / (3 + 2 x 0) = 1.

    Kinds before a: b, c; b: a; c: b: D = 2 / (2 + 2 x 1) = 1/2 of 4.
    """
    lower = {0: (2 - 0.5 + 0.5 * 3 / 4) / 4, 1: (1 - 0.5 + 0.5 * 3 / 4) / 4, 3: 0.5 * 3 / 4 / 4}
    assert of_last([0], 1, 2, KNESER_NEY) == pytest.approx((3 - 1 + 1 * 1 * lower[1]) / 3)
    assert of_last([1], 0, 2, KNESER_NEY) == pytest.approx((1 - 1 + 1 * 2 * lower[0]) / 2)
    assert of_last([1], 3, 2, KNESER_NEY) == pytest.approx(2 * lower[3] / 2)
    assert of_last([3], 3, 2, KNESER_NEY) == pytest.approx(lower[3])


def test_nothing_seen_once_has_a_discount_too():
    text = np.array([0, 1] * 4 + [0])  # single tokens 5 and 4: none once, none twice
    found = probabilities(text, [np.array([2])], 3, 1, KNESER_NEY)[0][0][0]
    assert found == pytest.approx(CHURCH_GALE * 2 / 3 / 9)


@pytest.mark.parametrize("smoothing", [KNESER_NEY, WITTEN_BELL])
def test_probabilities_sum_to_one_after_every_context(smoothing: str):
    """Seen contexts and unseen ones, at every order."""
    rng = np.random.default_rng(0)
    train = rng.choice(5, 60, p=[0.5, 0.3, 0.1, 0.1, 0.0])
    for context in itertools.product(range(5), repeat=3):
        ends = [np.array([*context, token]) for token in range(5)]
        for order in probabilities(train, ends, 5, 4, smoothing):
            assert sum(float(each[-1]) for each in order) == pytest.approx(1.0)


def test_an_order_is_the_same_whatever_longer_ones_are_counted():
    rng = np.random.default_rng(1)
    train, text = rng.integers(0, 6, 300), rng.integers(0, 6, 40)
    for smoothing in (KNESER_NEY, WITTEN_BELL):
        few, many = (perplexities(train, [text], 6, orders, smoothing) for orders in (2, 5))
        assert few == many[:1] and len(many) == 4


def test_perplexity_is_of_every_token_but_the_first():
    text = np.array([0, 1, 2, 3])
    given = probabilities(TEXT, [text], 4, 2, WITTEN_BELL)[1][0]
    assert perplexities(TEXT, [text], 4, 2, WITTEN_BELL) == [[pytest.approx(math.prod(given[1:]) ** (-1 / 3))]]
