"""The loop, on a tiny Stable Diffusion and rendered scenes: exact resume, processes, micro-batches, signals, NaN."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics import INTRINSICS, read_lora
from intrinsic_lora.tests.support import kill_train, tiny_training
from intrinsic_lora.train import prepare, steps
from intrinsic_lora.train.backbones.stable_diffusion import StableDiffusion
from intrinsic_lora.train.config import load_config, to_yaml
from intrinsic_lora.train.loop import Run, TrainingStopped, train
from intrinsic_lora.train.methods import SingleStep
from intrinsic_lora.train.validation import load_validation, predict_maps
from PIL import Image

NORMALS = INTRINSICS["normals"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return (base, scenes)."""
    folder = tmp_path_factory.mktemp("parts")
    return tiny_training.write_base(folder / "base"), tiny_training.write_scenes(folder / "scenes", 9)


@pytest.fixture
def run(parts, tmp_path):
    """Return a function that builds a configuration: `run("name", key=value)`."""

    def make(name, **changes):
        return tiny_training.config(*parts, tmp_path / name, **changes)

    return make


def result(config, name="normals"):
    return tiny_training.weights(os.path.join(config.out, f"intrinsic_lora_{name}.safetensors"))


def rows(config, key="loss"):
    with open(os.path.join(config.out, "metrics.jsonl")) as file:
        return [row[key] for row in map(json.loads, file) if key in row]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def stop_after(monkeypatch, step):
    """Send the process SIGTERM while it computes `step`; it stops after that step."""
    done = Run.train_step

    def train_step(self):
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        done(self)

    monkeypatch.setattr(Run, "train_step", train_step)


def test_stopping_and_going_on_changes_no_bit(run, monkeypatch):
    extra = {"ema": 0.9, "schedule__name": "cosine", "schedule__warmup": 2, "intrinsics": "[normals,shading]"}
    whole, parted = run("whole", **extra), run("parted", **extra)
    train(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(TrainingStopped, match="Stopped at step 3 of 6"):
            train(parted)
    assert not os.path.exists(os.path.join(parted.out, "README.md"))
    train(parted)
    assert_same(result(whole), result(parted))
    for place in ("best", "checkpoints/step_000006"):
        files = [os.path.join(c.out, place, "intrinsic_lora_normals.safetensors") for c in (whole, parted)]
        assert_same(*map(tiny_training.weights, files))
    assert rows(whole) == rows(parted) and len(rows(whole)) == 6
    assert rows(whole, "validation") == rows(parted, "validation")
    train(parted)  # finished: nothing changes
    assert_same(result(whole), result(parted))
    assert rows(whole, "validation") == rows(parted, "validation")


def test_what_is_trained_is_the_method_written_out_by_hand(run, parts):
    """Plain PyTorch without our loop: same start, same pictures, same noise, AdamW written out."""
    config = run("ours", max_steps=3, optimizer__clip=0, schedule__name="linear")
    train(config)
    backbone = StableDiffusion.load(str(parts[0]), [NORMALS])
    source, _ = prepare.open_data(config, [NORMALS])
    cache = prepare.open_cache(config, source, prepare.build_method(config, backbone), [NORMALS], None)
    prepare.add_loras(config, backbone, [NORMALS])
    parameters = backbone.lora_parameters("normals")
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for step in range(3):
        order = steps.indices_of_step(config.seed, step, 4, len(cache))
        batch = cache.batch(order)
        generators = [steps.generator_of(config.seed, step, i) for i in range(4)]
        noise = torch.stack([torch.randn(batch["image"].shape[1:], generator=g) for g in generators])
        out = backbone.unet(
            batch["image"], torch.full((4,), 999), backbone.prompts["normals"].expand(4, -1, -1), return_dict=False
        )[0]
        loss = (out - (batch["normals_mean"] + batch["normals_std"] * noise)).pow(2).mean()
        gradients = torch.autograd.grad(loss, parameters)
        assert loss.item() == pytest.approx(rows(config)[step]["normals"], rel=1e-5)
        rate = 1e-2 * (1 - step / 3)
        with torch.no_grad():
            for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
                p *= 1 - rate * 1e-2
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.001)
                p -= rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    ours = result(config)
    for name, (a, b, _) in backbone.lora_weights("normals").items():
        torch.testing.assert_close(ours[f"{name}.A"], a, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours[f"{name}.B"], b, rtol=1e-3, atol=1e-5)


def test_micro_batches_add_up_to_the_batch(run):
    whole, parted = run("whole"), run("parted", accumulation=3)  # of 2, 1 and 1 pictures
    for config in (whole, parted):
        train(config)
    for a, b in zip(rows(whole), rows(parted), strict=True):
        assert a["normals"] == pytest.approx(b["normals"], rel=1e-4)
    for key, value in result(whole).items():
        torch.testing.assert_close(result(parted)[key], value, rtol=1e-2, atol=1e-4)


def test_two_processes_give_the_curve_of_one(run, tmp_path):
    one, two = run("one", batch_size=5), run("two", batch_size=5)  # 5: shares of 3 and 2
    train(one)
    (tmp_path / "two.yaml").write_text(to_yaml(two))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "intrinsic_lora.cli.main", "train", "--config", str(tmp_path / "two.yaml")]
    ran = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert len(rows(two)) == 6
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["normals"] == pytest.approx(b["normals"], rel=1e-4)
    for a, b in zip(rows(one, "grad_norm"), rows(two, "grad_norm"), strict=True):
        assert a["normals"] == pytest.approx(b["normals"], rel=1e-3)


def test_trained_together_equals_trained_alone(run):
    together = run("together", intrinsics="[normals,depth]")
    alone = run("alone", intrinsics="[depth]")
    for config in (together, alone):
        train(config)
    for key, value in result(alone, "depth").items():
        torch.testing.assert_close(result(together, "depth")[key], value)


def test_a_kill_at_any_moment_is_survived(tmp_path):
    """Run in a separate process, because it forks. `python tests/support/kill_train.py` does this 20 times."""
    command = [sys.executable, kill_train.__file__, "--kills", "2", "--steps", "12"]
    ran = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0 and "2 kills" in ran.stdout, ran.stdout[-2000:] + ran.stderr[-2000:]


def test_a_damaged_checkpoint_costs_its_steps_and_no_more(run):
    whole, hurt = run("whole"), run("hurt")
    train(whole)
    train(hurt)
    state = os.path.join(hurt.out, "checkpoints", "step_000006", "state.pt")
    with open(state, "r+b") as file:
        file.truncate(1000)
    with pytest.warns(UserWarning, match="step_000006 is damaged"):
        train(hurt)
    assert_same(result(whole), result(hurt))
    assert rows(whole) == rows(hurt)


def test_nan_stops_and_names_the_last_good_checkpoint(run, monkeypatch):
    config = run("nan")
    loss = SingleStep.loss
    calls = []

    def broken(self, *arguments):
        calls.append(1)
        return loss(self, *arguments) * (float("nan") if len(calls) == 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(SingleStep, "loss", broken)
        with pytest.raises(FloatingPointError, match=r"loss of normals became nan in step 4; .*step_000002"):
            train(config)
    train(config)  # and resumes from there
    assert all(torch.isfinite(x).all() for x in result(config).values())


def test_best_is_the_step_with_the_best_metric(run):
    # A rate far too high at the end: the last weights are worse than those of an earlier validation.
    config = run("best", validate_every=1, max_steps=8, optimizer__lr=0.3, optimizer__clip=0)
    train(config)
    angles = [scores["normals"]["mean_angle"] for scores in rows(config, "validation")]
    assert len(angles) == 9  # the base alone is scored too
    lora = read_lora(os.path.join(config.out, "best", "intrinsic_lora_normals.safetensors"))
    training = lora.header.training
    assert training["steps"] == 1 + min(range(8), key=lambda i: angles[1 + i])
    assert training["validation"]["mean_angle"] == pytest.approx(min(angles[1:]))


def test_the_average_is_what_is_published(run):
    config = run("ema", ema=0.5)
    train(config)
    raw = tiny_training.weights(os.path.join(config.out, "checkpoints/step_000006/intrinsic_lora_normals.safetensors"))
    state = torch.load(os.path.join(config.out, "checkpoints/step_000006/state.pt"), weights_only=True)
    published = result(config)
    assert not torch.equal(published[next(iter(raw))], raw[next(iter(raw))])
    both = (state["average"]["shadow_params"], published.values())
    average, ours = (sorted(x.double().sum().item() for x in tensors) for tensors in both)
    assert average == ours


def test_results_are_files_the_pipeline_loads(run, parts):
    config = run("files", intrinsics="[normals,albedo]")
    out = train(config)
    pipe = IntrinsicLoRAPipeline.from_pretrained(parts[0])
    pipe.load_intrinsics({name: out / f"intrinsic_lora_{name}.safetensors" for name in ("normals", "albedo")})
    assert pipe.intrinsics == ("normals", "albedo")
    maps = pipe(torch.rand(1, 3, 32, 32))
    assert torch.isfinite(maps.normals).all()
    header = read_lora(out / "intrinsic_lora_normals.safetensors").header
    training = header.training
    assert training["config"]["lora"]["rank"] == 2 and training["pictures"] == 7 and len(training["base"]) >= 16
    assert header.timestep == 999 and header.base_model
    card = (out / "README.md").read_text()
    assert "intrinsic-lora train --config config.yaml" in card and "mean_angle" in card
    assert str(out.parent) not in card and str(parts[1]) not in header.entries["intrinsic_lora.training"]
    with Image.open(out / "validation.png") as grid:
        assert grid.width > 5 * 150  # photo, and label and ours of both
    again = card.partition("```yaml\n")[2].partition("```")[0]
    (out / "again.yaml").write_text(again)
    assert load_config(None, out / "again.yaml", ["out=x"]).lora.rank == 2


def test_the_maps_of_training_are_those_of_the_pipeline(run, parts):
    """Validation scores the maps that users get."""
    config = run("maps")
    out = train(config)
    pipe = IntrinsicLoRAPipeline.from_pretrained(parts[0])
    pipe.load_intrinsics({"normals": out / "intrinsic_lora_normals.safetensors"})
    backbone = StableDiffusion.load(str(parts[0]), [NORMALS])
    _, held_out = prepare.open_data(config, [NORMALS])
    validation = load_validation(held_out, backbone, [NORMALS], 32)
    method = prepare.build_method(config, backbone)
    prepare.add_loras(config, backbone, [NORMALS])
    modules = list(backbone.lora_weights("normals"))
    backbone.load_lora_weights("normals", read_lora(out / "intrinsic_lora_normals.safetensors", modules).weights)
    ours = predict_maps(method, "normals", validation.conditions)
    theirs = pipe(validation.photos).normals
    assert (1 - (ours * theirs).sum(1)).max() < 1e-3


def test_another_run_in_the_folder_is_refused(run):
    config = run("same")
    train(config)
    with pytest.raises(ValueError, match=r"holds a run with lora.rank=2, not 4; choose another out"):
        train(run("same", lora__rank=4))
    with pytest.raises(ValueError, match="holds a run; choose another out"):
        train(config, resume=False)
    train(run("same", max_steps=8))  # longer is the same run
    assert len(rows(config)) == 8


def test_the_disk_is_looked_at_before_hours_are_spent(run, monkeypatch):
    config = run("full")
    train(run("full", max_steps=1))  # the latents exist, so only the weights do not fit
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"run needs up to .* GiB .* free some space"):
        train(config)
    assert len(rows(config)) == 1


def test_more_processes_than_pictures(run):
    class Three:
        is_main_process, num_processes, device, process_index = True, 3, torch.device("cpu"), 0

    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        Run(run("few", batch_size=2), Three(), None)


@pytest.mark.parametrize(("precision", "float32_base"), [("bf16", "false"), ("fp16", "false"), ("bf16", "true")])
@pytest.mark.bfloat16
def test_mixed_precision_keeps_the_loras_in_float32_and_learns_the_same(run, precision, float32_base):
    exact = run("exact", max_steps=3)
    mixed = run("mixed", max_steps=3, precision=precision, float32_base=float32_base, gradient_checkpointing="true")
    for config in (exact, mixed):
        train(config)
    assert {x.dtype for x in result(mixed).values()} == {torch.float32}
    for a, b in zip(rows(exact), rows(mixed), strict=True):
        assert b["normals"] == pytest.approx(a["normals"], rel=0.05)
    assert rows(exact) != rows(mixed)
