"""Mixture and packing: shares, epochs, waste, and that nothing depends on when or where it is asked."""

import pickle
from collections import Counter

import numpy as np
import pytest

from processing_anygpt import packing
from processing_anygpt.packing import PackPlan, best_fit_decreasing

RNG = np.random.default_rng(0)
# Lengths as the paper's sources have them: captions with 32 codes, 10-20 s of speech, music of 1,000 codes.
PAPER = {
    "interleaved": RNG.integers(100, 1500, 500),
    "image": RNG.integers(45, 120, 6000),
    "mls": RNG.integers(560, 1050, 900),
    "speech": RNG.integers(60, 900, 2500),
    "music": RNG.integers(1010, 1060, 900),
}
RATES = {"interleaved": 0.05, "image": 0.30, "mls": 0.13, "speech": 0.27, "music": 0.25}


def owners(lengths: dict, rows: list[int]) -> list[str]:
    ends = np.cumsum([len(each) for each in lengths.values()])
    return [list(lengths)[place] for place in np.searchsorted(ends, rows, side="right")]


def test_best_fit_uses_every_row_once_and_no_pack_is_too_long():
    lengths = RNG.integers(1, 65, 300)
    packs = best_fit_decreasing(lengths, 64)
    assert sorted(place for pack in packs for place in pack) == list(range(300))
    assert all(lengths[pack].sum() <= 64 for pack in packs)
    # 60 leaves room for the 4, 40 for the 24: a first fit in the order given would need a third pack.
    assert sorted(map(sorted, best_fit_decreasing([4, 24, 40, 60], 64))) == [[0, 3], [1, 2]]


@pytest.mark.parametrize("capacity", [2048, 4500])
def test_little_is_wasted(capacity):
    assert PackPlan(PAPER, RATES, capacity, seed=0).waste(packing.WINDOW) <= 0.02


def test_shares_of_the_ids_follow_the_rates_at_any_moment():
    plan = PackPlan(PAPER, RATES, 4500, seed=0)
    for upto in (packing.WINDOW, 2 * packing.WINDOW):
        ids = Counter()
        for index in range(upto):
            for row, owner in zip(plan[index], owners(PAPER, plan[index]), strict=True):
                ids[owner] += plan.lengths[row]
        for name, rate in RATES.items():
            assert ids[name] / ids.total() == pytest.approx(rate, abs=0.005)


def test_every_row_comes_once_an_epoch_in_a_new_order():
    lengths = {"only": np.full(packing.WINDOW * 2, 50)}  # a window of packs of 100 ids is one epoch
    plan = PackPlan(lengths, {"only": 1.0}, 100, seed=3)
    epochs = [[row for i in range(packing.WINDOW) for row in plan[start + i]] for start in (0, packing.WINDOW)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(packing.WINDOW * 2))
    assert epochs[0] != epochs[1]


def test_a_pack_depends_on_its_number_and_the_seed_alone():
    made = [PackPlan(PAPER, RATES, 4500, seed=seed) for seed in (0, 0, 1)]
    far = packing.WINDOW + 7
    assert made[0][far] == made[1][far] != made[2][far]
    assert made[0][3] == made[1][3]  # going back
    assert pickle.loads(pickle.dumps(made[0]))[far] == made[1][far]  # as in the worker of a data loader


def test_rows_that_are_too_long_are_left_out_and_counted():
    plan = PackPlan({"a": np.array([5, 200, 7]), "b": np.array([9])}, {"a": 1, "b": 1}, 100, seed=0)
    assert plan.left_out == {"a": 1, "b": 0}
    assert {row for i in range(20) for row in plan[i]} == {0, 2, 3}


@pytest.mark.parametrize(
    ("lengths", "rates", "message"),
    [
        ({"a": np.array([5])}, {"b": 1.0}, "need one rate each"),
        ({"a": np.array([5])}, {"a": 0.0}, "rates must be positive"),
        ({"a": np.array([5])}, {"a": "half"}, "rates must be positive"),
        ({}, {}, "rates must be positive"),
        ({"a": np.array([5, 6])}, {"a": 1.0}, "no row of 'a' fits into 4 ids"),
    ],
)
def test_errors(lengths, rates, message):
    with pytest.raises(ValueError, match=message):
        PackPlan(lengths, rates, 4, seed=0)
