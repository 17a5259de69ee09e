"""Checkpoints are complete or absent; the newest valid one is found, and damaged ones are skipped with a warning."""

import shutil
import warnings

import pytest
import torch
from intrinsic_lora.train.checkpoints import checkpoints, newest_sound, save_checkpoint


def save(folder, step, keep=3):
    def write(temporary):
        (temporary / "lora.txt").write_text(f"weights of {step}")

    return save_checkpoint(folder, step, write, {"step": step, "tensor": torch.arange(step)}, keep)


def test_the_newest_is_found_and_only_the_last_ones_stay(tmp_path):
    for step in (1, 5, 999_999, 1_000_000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_999999", "step_1000000"]
    path, state = newest_sound(tmp_path)
    assert path.name == "step_1000000" and state["step"] == 1_000_000
    assert (path / "lora.txt").read_text() == "weights of 1000000"


def test_nothing_there(tmp_path):
    assert newest_sound(tmp_path / "none") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-7]),
        lambda path: (path / "lora.txt").write_text("weights of 9"),
        lambda path: (path / "lora.txt").unlink(),
        lambda path: (path / "manifest.json").write_text('{"state.pt": '),
        lambda path: (path / "manifest.json").unlink(),
    ],
    ids=["short", "changed", "missing", "torn manifest", "no manifest"],
)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with pytest.warns(UserWarning, match=r"step_000002 is damaged .* is skipped"):
        path, state = newest_sound(tmp_path)
    assert path.name == "step_000001" and state["step"] == 1
    save(tmp_path, 2)  # the run comes by again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_sound(tmp_path)[1]["step"] == 2


def test_when_all_are_damaged_the_run_is_not_silently_begun_anew(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "state.pt").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"Every checkpoint in .* is damaged; delete"):
        newest_sound(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    save(tmp_path, 1)

    def full(temporary):
        (temporary / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, full, {"step": 2}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert newest_sound(tmp_path)[1]["step"] == 1


def test_leftovers_of_a_kill_are_no_checkpoints_and_are_cleared_away(tmp_path):
    whole = save(tmp_path, 1)
    shutil.copytree(whole, tmp_path / ".step_000002.abcd")  # written, but not yet renamed
    (tmp_path / ".step_000000.beef").mkdir()  # half removed
    assert newest_sound(tmp_path)[0] == whole
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000003"]
