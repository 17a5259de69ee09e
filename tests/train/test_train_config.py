"""The configuration of a training run: layers, errors in one sentence, presets with the paper's settings."""

from typing import get_type_hints

import pytest
from intrinsic_lora.train import config as config_module
from intrinsic_lora.train.config import (
    PRESETS,
    check_config,
    chosen_intrinsics,
    describe,
    load_config,
    public_dict,
    to_yaml,
)

NEEDED = ["out=run", "data.path=photos"]


def test_the_paper_preset_is_every_row_of_the_papers_table():
    config = load_config("paper-sd15-r8", None, NEEDED)
    assert config.base == "stable-diffusion-v1-5/stable-diffusion-v1-5" and config.method == "single-step"
    assert (config.lora.rank, config.lora.alpha) == (8, 8)
    assert config.lora.targets == ["to_q", "to_k", "to_v", "to_out.0"]
    assert (config.timestep, config.loss) == (999, "latent")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.betas) == ("adamw", 1e-4, [0.9, 0.999])
    assert (optimizer.weight_decay, optimizer.clip) == (1e-2, 1.0)
    assert (config.schedule.name, config.schedule.warmup) == ("constant", 0)
    assert (config.batch_size, config.max_steps, config.precision) == (4, 20_000, "no")
    assert (config.data.resolution, config.data.limit) == (512, 4000)
    assert not (config.data.flip or config.data.color_permutations or config.ema)


def test_the_augunet_preset():
    config = load_config("paper-sd21-augunet", None, NEEDED)
    assert config.method == "multi-step" and "stable-diffusion-2-1" in config.base
    assert config.image_channels == "timbrooks/instruct-pix2pix"
    assert (config.lora.rank, config.batch_size, config.max_steps) == (8, 4, 50_000)


def test_the_embedded_preset_is_the_recipe_of_the_embedded_model():
    """Compare with the shipped LoRA of normals."""
    from intrinsic_lora.diffusers_pipeline.base import EMBEDDED
    from intrinsic_lora.intrinsics import read_lora

    shipped = read_lora(EMBEDDED / "loras/intrinsic_lora_normals.safetensors")
    config = load_config("embedded")
    assert config.base is None and config.intrinsics == ["normals", "depth", "albedo", "shading"]
    assert {len(a) for a, _, _ in shipped.weights.values()} == {config.lora.rank}
    ends = {next(end for end in config.lora.targets if module.endswith(f".{end}")) for module in shipped.weights}
    assert ends == set(config.lora.targets)
    assert shipped.header.timestep == config.timestep
    assert shipped.header.training["steps"] == config.max_steps
    assert config.data.limit == 250 and config.data.flip and config.data.color_permutations
    assert (config.batch_size, config.optimizer.lr) == (16, 4e-3)
    assert (config.schedule.name, config.schedule.warmup) == ("cosine", 50)
    assert (config.precision, config.float32_base) == ("bf16", True)


def test_the_last_layer_wins(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 7\nlora: {rank: 3}\noptimizer: {lr: 1e-3}\n")
    config = load_config("paper-sd15-r8", file, [*NEEDED, "lora.rank=5"])
    assert (config.batch_size, config.lora.rank, config.optimizer.lr, config.max_steps) == (7, 5, 1e-3, 20_000)


def test_what_is_written_is_read_back_the_same(tmp_path):
    config = load_config("embedded", None, ["custom.shadow.prompt=shadow mask", "intrinsics=[shadow,depth]"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(None, file) == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["lr=1"], "did you mean optimizer.lr?"),
        (["data.resolutoin=64"], "did you mean data.resolution?"),
        (["max_steps=many"], "max_steps=many: max_steps must be a whole number, not 'many'"),
        (["method=two-step"], "single-step"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["intrinsics=[]"], "intrinsics is empty"),
        (["intrinsics=[normal]"], "did you mean normals?"),
        (["intrinsics=[normals,normals]"], "twice"),
        (["custom.depth.prompt=far"], "depth is built in"),
        (["custom.shadow.channels=1"], "custom.shadow.prompt is not set"),
        (["custom.a-b.prompt=x", "intrinsics=[a-b]"], "letters, digits and underscores"),
        (["data.resolution=100"], "multiple of 8"),
        (["method=multi-step", "loss=pixel"], "requires method=single-step"),
        (["optimizer.lr"], "not of the form key=value"),
        (["ema=1"], "below 1"),
        (["intrinsics=normals,depth"], "intrinsics is a list; write intrinsics=[normals,depth]"),
        (["intrinsics=[normals"], "intrinsics=[normals is not valid YAML"),
        (["intrinsics={a: 1}"], "intrinsics must be text"),
        (["lora=8"], "lora is a group of settings"),
        (["custom=[a]"], "custom is a group of settings"),
        (["optimizer.betas=0.9"], "two numbers"),
        (["optimizer.betas=[0.9,nan]"], "two numbers"),
        (["optimizer.lr=inf"], "positive number"),
        (["timestep=abc"], "timestep must be a whole number, not 'abc'"),
        (["timestep=-1"], "timestep must be 0 or more"),
        (["data.limit=0"], "data.limit must be at least 1"),
        (["precision=half"], "precision must be one of no, bf16, fp16, not 'half'"),
        (["a=" + "[" * 3000 + "]" * 3000], "nested too deeply"),
        (["a" + ".b" * 3000 + "=1"], "nested too deeply"),
        (["out=${oc.env:HOME}"], "${...} is not filled in"),
        (["out=${data.path}"], "${...} is not filled in"),
        (["out=${oc.env"], "${...} is not filled in"),
    ],
)
def test_mistakes_get_one_sentence(overrides, expected):
    with pytest.raises(ValueError, match=r".") as error:
        load_config("embedded", None, overrides)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_every_list_takes_one_value_alone():
    given = ["lora.targets=to_q", "intrinsics=depth"]
    config = load_config("embedded", None, given)
    assert (config.lora.targets, config.intrinsics) == (["to_q"], ["depth"])
    lists = {key for key, _, _ in describe() if "list" in str(_type_of(key))}
    assert lists == {"lora.targets", "intrinsics", "optimizer.betas"}  # the last one needs two


def _type_of(key):
    cls = config_module.TrainConfig
    for part in key.replace("custom.NAME", "custom").split("."):
        cls = config_module.CustomConfig if cls == dict[str, config_module.CustomConfig] else get_type_hints(cls)[part]
    return cls


def test_a_presets_validation_data_is_of_its_own_data(tmp_path):
    assert load_config("embedded").data.val_path == "runs/scenes/val"
    data = load_config("embedded", None, ["data.path=mine"]).data
    assert (data.path, data.val_path, data.val_count) == ("mine", None, 16)
    data = load_config("embedded", None, ["data.path=mine", "data.val_path=held", "data.val_count=7"]).data
    assert (data.val_path, data.val_count) == ("held", 7)
    (tmp_path / "mine.yaml").write_text("data: {path: mine, val_count: 3}")
    data = load_config("embedded", tmp_path / "mine.yaml").data
    assert (data.path, data.val_path, data.val_count) == ("mine", None, 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: " + b"[" * 3000 + b"]" * 3000, "is nested too deeply"),
        (b"a: &a [*a]", "is not valid YAML"),
        (b"out: caf\xe9", "is not UTF-8 text"),
        ("out: café".encode("utf-16"), "is not UTF-8 text"),
        (b"out: ${oc.env:IL_SECRET}", "${...} is not filled in"),
        (rb'out: "\x24{oc.env:IL_SECRET}"', "${...} is not filled in"),  # the same, spelt so that no $ is seen
        (b"custom: {'${oc.env:IL_SECRET}': {prompt: a}}", "${...} is not filled in"),
        (b"1: 2", "Unknown key '1'"),
    ],
)
def test_hostile_files_are_named_in_one_sentence(tmp_path, monkeypatch, content, expected):
    monkeypatch.setenv("IL_SECRET", "hunter2")
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_config(None, file, NEEDED)
    assert expected in str(error.value) and "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_what_must_be_given_is_asked_for():
    with pytest.raises(ValueError, match=r"data\.path is not set; add data.path="):
        load_config("paper-sd15-r8")
    with pytest.raises(ValueError, match=r"Preset 'embeded' not found; did you mean embedded"):
        load_config("embeded")


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Configuration file .* not found"):
        load_config(None, tmp_path / "none.yaml")
    for text, expected in (("a: [", "not valid YAML"), ("- 1\n", "must hold"), ("stepps: 1", "Unknown key")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=expected):
            load_config(None, tmp_path / "bad.yaml")


def test_a_custom_intrinsic():
    config = load_config("embedded", None, ["custom.shadow.prompt=shadow mask", "custom.shadow.channels=1"])
    config.intrinsics = ["shadow"]
    check_config(config)
    (shadow,) = chosen_intrinsics(config)
    assert (shadow.name, shadow.prompt, shadow.channels, shadow.raw_convention) == ("shadow", "shadow mask", 1, "srgb")


def test_every_key_has_its_help():
    keys = list(describe())
    assert len({key for key, _, _ in keys}) == len(keys) > 40
    assert all(text for _, _, text in keys)


def test_what_is_published_tells_no_path_of_this_machine(tmp_path):
    local = [f"data.path={tmp_path}/a/photos", f"base={tmp_path}", f"out={tmp_path}/run"]
    config = load_config("embedded", None, local)
    assert str(tmp_path) not in str(public_dict(config)) and public_dict(config)["data"]["path"] == "photos"
    config.base = "someone/model"
    assert public_dict(config)["base"] == "someone/model"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_packaged(preset):
    assert config_module.files("intrinsic_lora.train").joinpath("presets", f"{preset}.yaml").is_file()
