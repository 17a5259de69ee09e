"""Compare one grouped forward pass of four LoRAs in ComfyUI's UNet with one forward pass per LoRA, in one process.

The UNet is Stable Diffusion 1.5 with random weights in float32; nothing is downloaded, and speed does not depend on
the weights. A forward pass per LoRA includes patching 128 weights by ComfyUI, and restoring them.

    cd ComfyUI && python custom_nodes/intrinsic-lora/benchmarks/comfy_grouped.py            # its Python, one thread
    ... --size 64 --threads 8 --device cuda
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path.cwd()))  # ComfyUI's folder
import comfy.cli_args

NAMES = ("normals", "depth", "albedo", "shading")
RANK = 8
MIB = 2**20
# ComfyUI's configuration of the UNet of Stable Diffusion 1.5.
SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8, "num_head_channels": -1,
    "context_dim": 768, "adm_in_channels": None, "use_linear_in_transformer": False, "use_spatial_transformer": True,
    "use_temporal_attention": False, "use_temporal_resblock": False, "legacy": False, "dtype": torch.float32,
}  # fmt: skip


def pack() -> Any:
    """Load the pack as ComfyUI does, and return its module `comfy_nodes.runtime`."""
    folder = Path(__file__).parents[1]
    spec = spec_from_file_location("the_pack", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(sys.modules.setdefault("the_pack", module_from_spec(spec)))
    return import_module("the_pack.comfy_nodes.runtime")


def stable_diffusion(device: torch.device) -> Any:
    """Build a MODEL with random weights, scaled so that activations stay near 1."""
    from comfy import model_patcher, supported_models

    torch.manual_seed(0)
    model = supported_models.SD15(SD15).get_model({}, device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.zero_()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):  # of a normalisation
                parameter.fill_(1)
    return model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def random_lora(runtime: Any, model: Any) -> Any:
    """Build a LoRA of rank 8 on all attention layers, like the released ones."""
    weights = {}
    state = model.model.state_dict()
    for module, key in runtime._keys(model, state).items():
        if ".attn" in module:
            out_features, in_features = state[key].shape
            down = torch.randn(RANK, in_features) / in_features**0.5
            weights[module] = (down, 0.3 * torch.randn(out_features, RANK) / RANK**0.5, float(RANK))
    return runtime.LoRA(weights)


def measure(run: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Seconds, peak MiB above what was in use before, and what `run` returns.

    The allocator's own figure on a GPU; on a CPU the growth of the process's resident memory, sampled every 5 ms.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        result = run()
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / MIB, result
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    try:
        result = run()
    finally:
        seconds = time.process_time() - start
        done.set()
        watcher.join()
    return seconds, (peak - before) / MIB, result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=32, help="Side of the latent; 64 is a photo of 512 pixels.")
    parser.add_argument("--repeats", type=int, default=2, help="Runs of each, in turn; the fastest counts.")
    parser.add_argument("--threads", type=int, default=1, help="Threads on a CPU.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    options = parser.parse_args()
    device = torch.device(options.device)
    comfy.cli_args.args.cpu = device.type == "cpu"
    torch.set_num_threads(options.threads)

    runtime = pack()
    model = stable_diffusion(device)
    loras = [random_lora(runtime, model) for _ in NAMES]
    positives = [[[torch.randn(1, 77, 768), {}]] for _ in NAMES]
    latent = torch.randn(1, 4, options.size, options.size)

    def grouped() -> torch.Tensor:
        return runtime.predict_each(runtime.with_loras(model, loras), positives)(latent)

    def one_by_one() -> torch.Tensor:
        pairs = zip(loras, positives, strict=True)
        return torch.stack([runtime.predict(runtime.with_lora(model, a), b)(latent) for a, b in pairs], 1)

    best: dict[str, tuple[float, float]] = {}
    drawn: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        runtime.predict(runtime._one_step(model, 999), positives[0])(latent)  # loaded, and warm
        for _ in range(options.repeats):
            for name, run in {"one grouped forward": grouped, "one forward per LoRA": one_by_one}.items():
                seconds, mib, drawn[name] = measure(run, device)
                before = best.get(name, (float("inf"), 0.0))
                best[name] = min(seconds, before[0]), max(mib, before[1])
                print(f"  {name}: {seconds:.2f} s", flush=True)

    each, alone = drawn.values()
    (short, _), (long, _) = best.values()
    clock = "CPU seconds" if device.type == "cpu" else "seconds"
    print(f"SD 1.5 ({sum(p.numel() for p in model.model.parameters()) / 1e6:.0f} M), float32, {options.device}")
    print(f"4 LoRAs of rank {RANK}, latent {options.size} x {options.size}, {options.threads} threads")
    for name, (seconds, mib) in best.items():
        print(f"{name}: {seconds:.2f} {clock}, {mib:.0f} MiB above the model")
    print(f"ratio {long / short:.2f}; largest difference {(each - alone).abs().max():.1e} of {alone.abs().max():.2f}")


if __name__ == "__main__":
    main()
