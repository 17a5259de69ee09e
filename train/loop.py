"""The training loop: one frozen base, one LoRA per intrinsic, any number of processes."""

import math
import shutil
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from diffusers.training_utils import EMAModel
from torch import nn

from ..intrinsics.files import FULL, atomic_path
from ..intrinsics.vocabulary import Intrinsic
from .card import write_card
from .checkpoints import newest_sound, save_checkpoint
from .config import TrainConfig, check_config, chosen_intrinsics, public_dict
from .log import Log, StopSignal
from .prepare import (
    add_loras,
    build_method,
    changes_of,
    check_disk,
    check_first,
    check_packages,
    load_base,
    offload_encoders,
    open_cache,
    open_data,
    problems_of,
    weights_bytes,
    with_targets,
    write_config,
)
from .steps import (
    autocast,
    averaged,
    build_optimizer,
    check_finite,
    check_launch,
    generator_of,
    indices_of_step,
    learning_rate,
    rows_of,
    sum_gradients,
)
from .validation import Scores, load_validation, main_metric, predict_maps, score_maps, sheet


class TrainingStopped(Exception):
    """A signal ended the run early, after a checkpoint was written.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def train(config: TrainConfig, *, resume: bool = True) -> Path:
    """Train the LoRAs of `config`, from the newest checkpoint in `config.out` if there is one.

    Under `accelerate launch` every process calls this; the first one alone writes files.

    Returns:
        The folder of the run. It holds `intrinsic_lora_<name>.safetensors` (the last weights, or their average with
        `ema`), `README.md`, `best/` (by the validation metric), `checkpoints/`, `validation/`, `config.yaml` and
        `metrics.jsonl`.

    Raises:
        ValueError: bad configuration or data, another run in the folder, or `resume=False` and a run exists.
        FloatingPointError: the loss is no longer finite; the sentence names the step and the last good checkpoint.
        TrainingStopped: SIGTERM or SIGINT; a checkpoint was written.
        OSError: not enough disk space.
    """
    check_config(config)
    check_launch(config)
    if not resume and (Path(config.out) / "checkpoints").exists():
        raise ValueError(f"{config.out} holds a run; choose another out, or delete the folder to start over.")
    # The other processes wait while the first one encodes the data, which may take hours.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    with Log(config, accelerator.is_main_process) as log:
        run = Run(config, accelerator, log)
        if run.step == 0:
            run.validate()
        try:
            _finish(run)
        except OSError as error:
            if error.errno not in FULL:
                raise
            newest = (
                f"the newest good checkpoint is {run.newest}" if run.newest else "no checkpoint was written before"
            )
            full = OSError(f"{str(error).rstrip('.')}; {newest}.")
            full.errno = error.errno
            raise full from error
    return Path(config.out)


def _finish(run: "Run") -> None:
    """Run the remaining steps."""
    config = run.config
    with StopSignal() as stop:
        while run.step < config.max_steps:
            run.train_step()
            signal = run.agree(stop.signal)
            last = run.step == config.max_steps
            if run.step % config.validate_every == 0 or last:
                run.validate()
            if run.step % config.checkpoint_every == 0 or last or signal:
                run.save()
            if signal and not last:
                raise TrainingStopped(
                    f"Stopped at step {run.step} of {config.max_steps} and saved a checkpoint. "
                    "Run the same command to resume.",
                    signal,
                )
    run.publish()


class Run:
    """Everything a run holds between its steps.

    Attributes:
        step: how many optimiser steps are done.
        parameters: {intrinsic: its LoRA's parameters}; `everything` is all of them.
        average: their moving average, or None.
        best: {intrinsic: the best value of its main metric so far}.
        scores: of the newest validation, and `scored` the step it was made at.
        newest: the last checkpoint that was written or read.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, log: Log) -> None:
        config = with_targets(config)
        self.config, self.accelerator, self.log = config, accelerator, log
        self.main, self.device, self.out = accelerator.is_main_process, accelerator.device, Path(config.out)
        self.intrinsics = chosen_intrinsics(config)
        self.names = [intrinsic.name for intrinsic in self.intrinsics]
        if config.batch_size < accelerator.num_processes:
            raise ValueError(
                f"batch_size={config.batch_size} cannot be shared by {accelerator.num_processes} processes; make it "
                "larger."
            )
        check_packages(config)
        self.training, held_out = open_data(config, self.intrinsics)
        changes = changes_of(config)

        # All that can be refused comes before anything is written, and before the data is encoded for hours.
        self.backbone = load_base(config, self.intrinsics, self.device)
        self.base_hash = self.backbone.fingerprint
        self.method = build_method(config, self.backbone)
        add_loras(config, self.backbone, self.intrinsics)
        self.parameters = {name: self.backbone.lora_parameters(name) for name in self.names}
        self.everything: list[nn.Parameter] = [p for group in self.parameters.values() for p in group]
        check_disk(self.out, weights_bytes(config, sum(p.numel() for p in self.everything)))
        self.optimizer = build_optimizer(config, self.everything)
        check_first(config, self.training, self.backbone)
        log.problems(problems_of(self.training, held_out))
        with accelerator.main_process_first():
            encode = partial(open_cache, config, self.training, self.method, self.intrinsics)
            self.latents = encode(log.encoding if self.main else None)
        self.validation = None
        if held_out is not None and self.main:
            self.validation = load_validation(held_out, self.backbone, self.intrinsics, config.data.resolution)
        offload_encoders(self.backbone)
        log.problems(problems_of(self.training, held_out))

        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.average = EMAModel(self.everything, decay=config.ema) if config.ema else None
        self.rows = rows_of(config, accelerator.process_index, accelerator.num_processes)
        self.step = 0
        self.best = dict.fromkeys(self.names, math.inf)
        self.scores: Scores = {}
        self.scored = -1
        self.newest: Path | None = None
        self._restore()
        for change in changes:
            log.say(f"Resuming with a changed setting: {change}")
        if self.main:
            write_config(config)
        log.begin(self.step)

    def train_step(self) -> None:
        """Do one optimiser step of every LoRA.

        The LoRAs take turns on the batch, each with its own backward. One forward for all of them would hold the
        activations of all and at full batches is hardly faster: see `benchmarks/train_speed.py --grouped`.
        """
        config, names = self.config, self.names
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(names), device=self.device)  # losses, means over the batch
        order = indices_of_step(config.seed, self.step, config.batch_size, len(self.latents))
        for rows in self.rows:
            batch = {key: x.to(self.device) for key, x in self.latents.batch(order[rows]).items()}
            for i, name in enumerate(names):
                noise = [generator_of(config.seed, self.step, row) for row in rows.tolist()]
                self.backbone.activate(name)
                with autocast(config, self.device):
                    loss = self.method.loss(batch, name, noise) * (len(rows) / config.batch_size)
                self.scaler.scale(loss).backward()
                sums[i] += loss.detach()
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, "sum")
            sum_gradients(self.accelerator, self.everything)
        self.scaler.unscale_(self.optimizer)
        limit = config.optimizer.clip or math.inf
        lengths = [nn.utils.clip_grad_norm_(self.parameters[name], limit) for name in names]  # each LoRA by itself
        values = torch.cat([sums, torch.stack(lengths)]).tolist()  # the one wait for the GPU in a step
        losses = dict(zip(names, values[: len(names)], strict=True))
        norms = dict(zip(names, values[len(names) :], strict=True))
        check_finite(self.step + 1, losses, norms, self.newest, config.precision == "fp16")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.step(self.everything)
        self.step += 1
        self.log.step(self.step, losses, rate, norms)

    def agree(self, signal: int) -> int:
        """Return a signal that some process received, or 0, the same in all: they stop after the same step."""
        if self.accelerator.num_processes == 1:
            return signal
        return int(self.accelerator.gather(torch.tensor([signal], device=self.device)).max())

    def validate(self) -> None:
        """Score the current weights and draw a sheet; new best ones go to `best/`."""
        self.scored = self.step
        if self.validation is None:
            return
        maps = {}
        with averaged(self.average, self.everything), autocast(self.config, self.device):
            for name in self.names:
                self.backbone.activate(name)
                maps[name] = predict_maps(self.method, name, self.validation.conditions)
        offload_encoders(self.backbone)
        self.scores = score_maps(maps, self.validation)
        self.log.validation(self.step, self.scores, sheet(maps, self.validation, self.intrinsics))
        if self.step == 0:
            return  # the base alone
        values = {name: self.scores[name][main_metric(name)] for name in self.names}
        better = [intrinsic for intrinsic in self.intrinsics if values[intrinsic.name] < self.best[intrinsic.name]]
        self.best |= {intrinsic.name: values[intrinsic.name] for intrinsic in better}
        if better:
            (self.out / "best").mkdir(exist_ok=True)
            with averaged(self.average, self.everything):
                self._write_loras(self.out / "best", better)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.main:
            state = {
                "step": self.step,
                "best": self.best,
                "scores": self.scores,
                "scored": self.scored,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
            }
            write = partial(self._write_loras, intrinsics=self.intrinsics)
            self.newest = save_checkpoint(self.out / "checkpoints", self.step, write, state, self.config.keep)
        self.accelerator.wait_for_everyone()

    def publish(self) -> None:
        """Write the finished LoRAs and their card."""
        if not self.main:
            return
        if self.scored != self.step:  # max_steps was lowered to where the run stood
            self.validate()
        with averaged(self.average, self.everything):
            self._write_loras(self.out, self.intrinsics)
        if self.scores:
            with atomic_path(self.out / "validation.png") as path:
                shutil.copyfile(self.out / "validation" / f"step_{self.step:06d}.png", path)
        write_card(
            self.out,
            family=self.backbone.family,
            config=public_dict(self.config),
            intrinsics=self.intrinsics,
            scores=self.scores,
            step=self.step,
            pictures=len(self.latents.names),
            val_pictures=len(self.validation.photos) if self.validation is not None else 0,
            fingerprint=self.latents.fingerprint,
        )

    def _restore(self) -> None:
        found = newest_sound(self.out / "checkpoints")
        if found is None:
            return
        self.newest, state = found
        self.step, self.best = state["step"], state["best"]
        self.scores, self.scored = state["scores"], state["scored"]
        for name in self.names:
            self.backbone.load_lora(self.newest / f"intrinsic_lora_{name}.safetensors", name)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.average.to(self.device)
        self.log.say(f"Resuming from step {self.step} of {self.newest}.")

    def _write_loras(self, folder: Path, intrinsics: Sequence[Intrinsic]) -> None:
        channels = self.method.image_channels
        for intrinsic in intrinsics:
            name = intrinsic.name
            training = {
                "config": public_dict(self.config),
                "steps": self.step,
                "pictures": len(self.latents.names),
                "data": self.latents.fingerprint,
                "base": self.base_hash,
                "validation": self.scores.get(name, {}) if self.scored == self.step else {},
            }
            self.backbone.save_lora(
                folder / f"intrinsic_lora_{name}.safetensors",
                name,
                method=self.config.method,
                timestep=self.config.timestep,
                training=training,
                extra=channels.header if channels else None,
            )
        if channels:
            channels.write(folder)
