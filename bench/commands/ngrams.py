"""N-gram models of a token stream: what counting reaches on the text that a network is trained and evaluated on.

The n-grams of a stream are numbered order by order: one of k tokens is the pair (number of its first k - 1, last
token), so that any order fits into 64 bits. numpy is imported inside the functions: naming commands must not load it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

Smoothing = Literal["kneser_ney", "witten_bell"]

KNESER_NEY: Smoothing = "kneser_ney"
WITTEN_BELL: Smoothing = "witten_bell"
HALF_ADDED = "half_added"
UNSEEN = -1
CHURCH_GALE = 0.75  # discount where no n-gram was seen once (Church and Gale 1991)


@dataclass(frozen=True, eq=False)
class Grams:
    """The distinct n-grams of one order in a stream.

    keys: [grams], sorted, (number of the first tokens) x vocabulary + last token. counts: how often each was seen.
    context: number of its first tokens, among those of the order below. at: [tokens], the number of the n-gram that
    ends there, UNSEEN at the start.
    """

    keys: Array
    counts: Array
    context: Array
    at: Array

    def find(self, before: Array, tokens: Array, vocabulary: int) -> Array:
        """[tokens] the number of the n-gram that ends at each token of another text; UNSEEN where it is none of these.

        before: the numbers of the n-grams of the order below in that text.
        """
        import numpy as np

        shorter = _shifted(before)
        key = shorter * vocabulary + tokens
        place = np.searchsorted(self.keys, key).clip(max=max(len(self.keys) - 1, 0))
        known = (shorter != UNSEEN) & (self.keys[place] == key) if len(self.keys) else np.zeros(len(key), dtype=bool)
        return np.where(known, place, UNSEEN)


def _shifted(numbers: Array) -> Array:
    """What stood one place before: UNSEEN for the first."""
    import numpy as np

    return np.concatenate([np.full(min(1, len(numbers)), UNSEEN, dtype=np.int64), numbers[:-1]])


def count_grams(tokens: Array, vocabulary: int, orders: int) -> Iterator[Grams]:
    """The n-grams of `tokens`, order 1 first. tokens: [n] of 0 to vocabulary - 1."""
    import numpy as np

    tokens = np.asarray(tokens, dtype=np.int64)
    before = np.zeros(len(tokens), dtype=np.int64)  # of order 0: there is one, it stands everywhere
    for order in range(1, orders + 1):
        shorter = before if order == 1 else _shifted(before)
        whole = shorter != UNSEEN
        keys, numbers, counts = np.unique(
            shorter[whole] * vocabulary + tokens[whole], return_inverse=True, return_counts=True
        )
        at = np.full(len(tokens), UNSEEN, dtype=np.int64)
        at[whole] = numbers
        yield Grams(keys, counts, keys // vocabulary, at)
        before = at


def unigram_perplexity(train: Array, text: Array, vocabulary: int) -> float:
    """Of the tokens of `text` but the first by their frequencies in `train`, half a count added to each."""
    import numpy as np

    counts = np.bincount(train, minlength=vocabulary) + 0.5
    return math.exp(-float(np.log(counts[text[1:]] / counts.sum()).mean()))


def perplexities(
    train: Array, texts: list[Array], vocabulary: int, orders: int, smoothing: Smoothing
) -> list[list[float]]:
    """[orders - 1][texts] of n-grams of 2 to `orders` tokens in `train`: of the tokens of each text but the first."""
    found = probabilities(train, texts, vocabulary, orders, smoothing)
    import numpy as np

    return [[math.exp(-float(np.log(each[1:]).mean())) for each in order] for order in found[1:]]


def probabilities(
    train: Array, texts: list[Array], vocabulary: int, orders: int, smoothing: Smoothing
) -> list[list[Array]]:
    """[orders][texts][tokens]: what interpolated n-grams of 1 to `orders` tokens give each token after those before it.

    Witten-Bell: p(w|h) = (c(hw) + t(h) p(w|h')) / (c(h) + t(h)), t(h) the kinds of tokens seen after h (Witten and Bell
    1991, method C). Kneser-Ney: p(w|h) = (max(c(hw) - D, 0) + D t(h) p(w|h')) / c(h), D = n1 / (n1 + 2 n2) of each
    order, where all orders but the longest count the kinds of tokens seen before an n-gram in place of the n-gram
    (Kneser and Ney 1995; Chen and Goodman 1999). h' is h without its first token; where h was not seen p(w|h) =
    p(w|h'), and below a single token all are equally likely.
    """
    import numpy as np

    texts = [np.asarray(text, dtype=np.int64) for text in texts]
    lower = [np.full(len(text), 1.0 / vocabulary) for text in texts]
    before = [np.zeros(len(text), dtype=np.int64) for text in texts]
    found = []
    grams = count_grams(train, vocabulary, orders + (smoothing == KNESER_NEY))
    here, contexts = next(grams), 1
    for order in range(1, orders + 1):
        longer = next(grams, None)
        contexts_at = before if order == 1 else [_shifted(numbers) for numbers in before]
        at = [
            here.find(numbers, text, vocabulary) if order > 1 else _singles(here, text)
            for numbers, text in zip(before, texts, strict=True)
        ]
        where = list(zip(contexts_at, at, lower, strict=True))
        if smoothing == KNESER_NEY:
            assert longer is not None
            found.append([_kneser_ney(here.counts, here.context, contexts, *each) for each in where])
            kinds = _kinds_before(here, longer)
            lower = [_kneser_ney(kinds, here.context, contexts, *each) for each in where]
        else:
            found.append([_witten_bell(here.counts, here.context, contexts, *each) for each in where])
            lower = found[-1]
        before, contexts = at, len(here.keys)
        if longer is not None:
            here = longer
    return found


def _singles(grams: Grams, text: Array) -> Array:
    """[tokens] the numbers of single tokens, UNSEEN where the counted text has them not."""
    import numpy as np

    place = np.searchsorted(grams.keys, text).clip(max=len(grams.keys) - 1)
    return np.where(grams.keys[place] == text, place, UNSEEN)


def _kinds_before(grams: Grams, longer: Grams) -> Array:
    """[grams] how many kinds of tokens each was seen after: the distinct n-grams of the next order that end with it."""
    import numpy as np

    whole = longer.at != UNSEEN
    ends = np.zeros(len(longer.keys), dtype=np.int64)
    ends[longer.at[whole]] = grams.at[whole]  # all places of one n-gram end with the same shorter one
    return np.bincount(ends, minlength=len(grams.keys))


def _of_contexts(counts: Array, context: Array, contexts: int) -> tuple[Array, Array]:
    """[contexts] each: the sum of the counts of its n-grams, and how many of them have any."""
    import numpy as np

    return np.bincount(context, counts, contexts), np.bincount(context, counts > 0, contexts)


def _kneser_ney(counts: Array, context: Array, contexts: int, of: Array, at: Array, lower: Array) -> Array:
    """[tokens] interpolated. of, at: numbers of the context and of the n-gram of each token. lower: p(w|h')."""
    import numpy as np

    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    discount = once / (once + 2.0 * twice) if once else CHURCH_GALE
    totals, kinds = _of_contexts(counts, context, contexts)
    total, known = totals[of], (of != UNSEEN) & (totals[of] > 0)
    seen = np.where(at != UNSEEN, counts[at], 0)
    kept = np.maximum(seen - discount, 0.0) + discount * kinds[of] * lower
    return np.where(known, kept / np.where(known, total, 1.0), lower)


def _witten_bell(counts: Array, context: Array, contexts: int, of: Array, at: Array, lower: Array) -> Array:
    """[tokens] interpolated, as `_kneser_ney`."""
    import numpy as np

    totals, kinds = _of_contexts(counts, context, contexts)
    known = of != UNSEEN
    seen = np.where(at != UNSEEN, counts[at], 0)
    return np.where(known, (seen + kinds[of] * lower) / np.where(known, totals[of] + kinds[of], 1.0), lower)
