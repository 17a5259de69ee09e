"""Batches: grouped by size, results apart, one refused picture alone, and out of memory in one sentence."""

import pytest
import torch
from intrinsic_lora.intrinsics.batches import run_batches
from intrinsic_lora.intrinsics.pictures import Picture

SIZES = {"a": (4, 6), "b": (4, 6), "c": (4, 6), "d": (6, 4), "e": (4, 6)}
VALUES = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5}


def read(name):
    if name not in SIZES:
        raise OSError(f"There is no {name}.")
    return Picture(torch.full((1, 3, *SIZES[name]), VALUES[name]), None, 8)


def run(names, batch_size, refused=(), **options):
    """(names in order, {name: twice its value}, sizes of the batches, {name: why it failed})."""
    seen, failures = [], {}

    def network(rgb):
        seen.append(len(rgb))
        if any(
            torch.isclose(rgb[i, 0, 0, 0], torch.tensor(VALUES[name])) for i in range(len(rgb)) for name in refused
        ):
            raise ValueError("No.")
        return {"twice": rgb[:, :1] * 2}

    found = list(run_batches(names, read, network, batch_size, failures.__setitem__, **options))
    assert all(picture.rgb.shape[-2:] == SIZES[name] == made["twice"].shape[-2:] for name, picture, made in found)
    return [name for name, _, _ in found], {n: made["twice"].unique().item() for n, _, made in found}, seen, failures


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 5), (2, [2, 1, 1, 1]), (8, [3, 1, 1])])
def test_neighbours_of_one_size_go_together(batch_size, batches):
    order, values, seen, failures = run("abcde", batch_size)
    assert order == list("abcde")
    assert values == pytest.approx({name: 2 * value for name, value in VALUES.items()})
    assert seen == batches
    assert not failures


def test_what_cannot_be_read_or_is_refused_is_left_out_alone():
    order, _, seen, failures = run("axbcde", 8, refused="b")
    assert order == list("acde")
    assert {name: str(error) for name, error in failures.items()} == {"x": "There is no x.", "b": "No."}
    assert seen == [3, 1, 1, 1, 1, 1]


def test_other_errors_and_out_of_memory_end_the_run():
    def runs(error):
        def network(rgb):
            raise error

        list(run_batches("ab", read, network, 2, lambda *_: pytest.fail("reported as a bad picture")))

    with pytest.raises(RuntimeError, match="a bug"):
        runs(RuntimeError("a bug"))
    with pytest.raises(ValueError, match=r"^Out of memory: lower the batch size .*\.$"):
        runs(torch.OutOfMemoryError("CUDA out of memory"))
