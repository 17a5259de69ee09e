"""`accelerate launch`: supported settings, and those rejected at the start, such as FSDP and another precision."""

import os
import subprocess
import sys

import pytest
from intrinsic_lora.tests.support import tiny_training
from intrinsic_lora.train.dry_run import estimate
from intrinsic_lora.train.loop import train

ENTRIES = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}
CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_state_dict_type: SHARDED_STATE_DICT}
mixed_precision: 'no'
num_machines: 1
num_processes: 1
"""


@pytest.fixture
def config(tmp_path):
    return tiny_training.config(tmp_path / "base", tmp_path / "data", tmp_path / "run")  # neither is read


@pytest.mark.parametrize("entry", ENTRIES)
def test_sharding_is_refused_before_anything_is_done(config, monkeypatch, tmp_path, entry):
    monkeypatch.setenv(f"ACCELERATE_USE_{entry}", "true")
    for door in (train, estimate):
        with pytest.raises(ValueError, match=rf"asks for {ENTRIES[entry]}, .* use `accelerate launch --multi_gpu`"):
            door(config)
    assert not list(tmp_path.iterdir())


def test_a_precision_that_would_not_be_used_is_refused(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="configuration has mixed_precision=bf16 and the run precision=no"):
        train(config)
    config.precision = "bf16"
    with pytest.raises(FileNotFoundError):  # continues up to the missing data
        train(config)


def test_the_real_launcher_with_an_fsdp_configuration(tmp_path):
    (tmp_path / "fsdp.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", tmp_path / "fsdp.yaml"]
    command += ["--main_process_port", "0", "-m", "intrinsic_lora.cli.main", "train", "--preset", "embedded"]
    command += [f"data.path={tmp_path}", f"out={tmp_path / 'run'}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert ran.returncode != 0 and "Error: accelerate's configuration asks for FSDP" in ran.stderr, ran.stderr[-3000:]
    assert not (tmp_path / "run").exists()
