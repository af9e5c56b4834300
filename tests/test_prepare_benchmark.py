"""What benchmarks/prepare.py counts: the time in which all workers work, and a part of the units at its ends."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "prepare.py"


@pytest.fixture
def steady():
    spec = importlib.util.spec_from_file_location("prepare_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.steady


def test_one_worker_counts_from_its_first_unit_to_its_last(steady):
    assert steady([(4, 10.0, 12.0, "a"), (4, 12.0, 15.0, "a")]) == (8, 5)


def test_two_workers_count_while_both_work(steady):
    """b begins 2 s after a, whose last unit ends a second before b's: 10 rows a second and worker all the same."""
    spans = [(40, 0.0, 4.0, "a"), (40, 4.0, 8.0, "a"), (40, 2.0, 6.0, "b"), (30, 6.0, 9.0, "b")]
    rows, seconds = steady(spans)
    assert seconds == 6 and rows == pytest.approx(120)
