"""Teachers: tiny models of every class, with their real processors, against the libraries' own conversions."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    LCMScheduler,
    MarigoldDepthPipeline,
    MarigoldIntrinsicsPipeline,
    MarigoldNormalsPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from intrinsic_lora import IntrinsicLoRAPipeline
from intrinsic_lora.intrinsics.display import display_map
from intrinsic_lora.tests.support import tiny
from intrinsic_lora.tests.support.closeness import MAP_ERROR
from intrinsic_lora.train.teachers.base import LoadedTeacher, fingerprint
from intrinsic_lora.train.teachers.hub import MODEL_FRAMES
from intrinsic_lora.train.teachers.load import LOADERS, load_teacher
from intrinsic_lora.train.teachers.table import TEACHERS
from transformers import (
    AutoConfig,
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

LIGHTING = {
    "target_names": ["albedo", "shading", "residual"],
    "albedo": {"prediction_space": "linear", "up_to_scale": False},
    "shading": {"prediction_space": "linear", "up_to_scale": True},
    "residual": {"prediction_space": "linear", "up_to_scale": True},
}
APPEARANCE = {
    "target_names": ["material", "albedo"],
    "material": {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]},
    "roughness": {"prediction_space": "linear"},
    "metallicity": {"prediction_space": "linear"},
    "albedo": {"prediction_space": "srgb"},
}


def photos(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth 8-bit colours (B, 3, H, W)."""
    noise = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


# Tiny models


@pytest.fixture(scope="module")
def zoe(tmp_path_factory) -> str:
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = ZoeDepthConfig(
        backbone_config=BeitConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            patch_size=16,
            out_features=stages,
            reshape_hidden_states=False,
            use_relative_position_bias=True,
        ),
        backbone_hidden_size=32,
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        bin_configurations=[{"name": "nyu", "n_bins": 16, "min_depth": 1e-3, "max_depth": 10.0}],
        num_attractors=[4, 2, 2, 1],
        bin_embedding_dim=16,
    )
    folder = tmp_path_factory.mktemp("zoe")
    ZoeDepthForDepthEstimation(config).save_pretrained(folder)
    ZoeDepthImageProcessorPil(size={"height": 64, "width": 64}, ensure_multiple_of=32).save_pretrained(folder)
    return str(folder)


def depth_anything_folder(folder: Path, **kind) -> str:
    torch.manual_seed(1)
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=56,
            patch_size=14,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        ),
        patch_size=14,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
        **kind,
    )
    net = DepthAnythingForDepthEstimation(config)
    torch.nn.init.normal_(net.head.conv3.weight)  # a range worth measuring
    torch.nn.init.constant_(net.head.conv3.bias, 0.5)  # away from the ReLU's zeros
    net.save_pretrained(folder)
    DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory) -> str:
    return depth_anything_folder(tmp_path_factory.mktemp("da"))


def marigold(kind: type, targets: int = 1, scheduler: type = DDIMScheduler, **config):
    """Build a Marigold pipeline of 32 px and two steps."""
    parts = tiny.components(seed=2)
    torch.manual_seed(3)
    channels = {"in_channels": 4 * (targets + 1), "out_channels": 4 * targets}
    unet = UNet2DConditionModel.from_config(parts["unet"].config, **channels)
    schedule = scheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = kind(
        unet=unet.eval(),
        vae=parts["vae"],
        scheduler=schedule,
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        default_denoising_steps=2,
        default_processing_resolution=32,
        **config,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def saved(pipe, folder: Path) -> str:
    pipe.save_pretrained(folder)
    return str(folder)


def own_prediction(pipe, pictures: torch.Tensor) -> torch.Tensor:
    """Return the library's result for each picture separately."""
    return torch.cat(
        [pipe(one[None], generator=torch.Generator().manual_seed(0), output_type="pt").prediction for one in pictures]
    )


def arrays(pictures: torch.Tensor) -> list[np.ndarray]:
    """8-bit pictures (H, W, 3), as processors are usually given them."""
    return [(picture * 255).round().byte().permute(1, 2, 0).numpy() for picture in pictures]


# The table


def test_every_teacher_of_the_table_can_be_loaded():
    assert TEACHERS.keys() == LOADERS.keys()


def test_impossible_settings_are_reported_in_a_sentence(zoe, depth_anything, tmp_path):
    with pytest.raises(ValueError, match="Unknown teacher 'oracle'; choose from zoedepth"):
        load_teacher("oracle")
    with pytest.raises(ValueError, match="zoedepth does not support ensemble; its options: none"):
        load_teacher("zoedepth", zoe, ensemble=3)
    with pytest.raises(ValueError, match="kind depth_anything, not zoedepth"):
        load_teacher("zoedepth", depth_anything)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_teacher("zoedepth", str(tmp_path))
    with pytest.raises(ValueError, match="Unknown normal-map frame 'up'"):
        load_teacher("normal-estimation", zoe, frame="up")


@pytest.mark.parametrize("name", [name for name in TEACHERS if name != "intrinsic-lora"])
def test_without_network_a_remote_teacher_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"^nobody/nothing is not in the .* cache, and HF_HUB_OFFLINE"):
        load_teacher(name, "nobody/nothing")


def test_weights_that_are_missing_are_not_filled_with_random_ones(zoe, tmp_path):
    net = ZoeDepthForDepthEstimation.from_pretrained(zoe)
    state = {key: value for key, value in net.state_dict().items() if "neck" not in key}
    net.save_pretrained(tmp_path, state_dict=state)
    ZoeDepthImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of ZoeDepthForDepthEstimation, such as .*neck"):
        load_teacher("zoedepth", str(tmp_path))


def test_fingerprint_sees_every_weight():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    before = fingerprint([net])
    assert fingerprint([net]) == before
    assert len(before) == 16
    with torch.no_grad():
        net[1].bias[1] += 1e-6
    assert fingerprint([net]) != before
    assert fingerprint([net.to(torch.bfloat16)]) != before


# transformers


def test_zoedepth_is_the_metric_distance_of_the_library(zoe):
    """Pre-processing and network of the library; padding, mirroring and stretching written out here."""
    pictures = photos(2, 40, 52)
    teacher = load_teacher("zoedepth", zoe)
    depth = teacher(pictures)["depth"]
    assert depth.shape == (2, 1, 40, 52)
    assert depth.dtype == torch.float32

    net = ZoeDepthForDepthEstimation.from_pretrained(zoe).eval()
    processor = ZoeDepthImageProcessorPil.from_pretrained(zoe)
    for picture, ours in zip(pictures, depth, strict=True):
        x = processor(images=arrays(picture[None]), return_tensors="pt").pixel_values
        with torch.no_grad():
            metres = net(x).predicted_depth
            mirrored = net(x.flip(3)).predicted_depth
        metres = (metres + mirrored.flip(2)) / 2
        rows, columns = int(np.sqrt(40 / 2) * 3), int(np.sqrt(52 / 2) * 3)
        whole = F.interpolate(metres[None], (40 + 2 * rows, 52 + 2 * columns), mode="bicubic", align_corners=False)
        inner = whole[0, 0, rows:-rows, columns:-columns]
        torch.testing.assert_close(ours[0], (inner - inner.min()) / (inner.max() - inner.min()), atol=1e-4, rtol=0)


def test_zoedepth_equals_the_librarys_post_processing(zoe):
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    pictures = photos(2, 40, 52)
    net = ZoeDepthForDepthEstimation.from_pretrained(zoe).eval()
    processor = ZoeDepthImageProcessorPil.from_pretrained(zoe)
    x = processor(images=arrays(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        metres = processor.post_process_depth_estimation(
            net(x), source_sizes=[(40, 52)] * 2, outputs_flipped=net(x.flip(3))
        )
    for ours, theirs in zip(load_teacher("zoedepth", zoe)(pictures)["depth"], metres, strict=True):
        far, near = theirs["predicted_depth"].max(), theirs["predicted_depth"].min()
        torch.testing.assert_close(ours[0], (theirs["predicted_depth"] - near) / (far - near), atol=1e-4, rtol=0)


def test_zoedepth_lies_on_the_photo_and_grows_with_distance(zoe, monkeypatch):
    """A network that predicts depth from brightness: the label is the photo's luminance, pixel by pixel."""
    pictures = photos(1, 96, 128).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    teacher = load_teacher("zoedepth", zoe)

    def brightness(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(predicted_depth=pixel_values.mean(1) + 3)

    monkeypatch.setattr(ZoeDepthForDepthEstimation, "forward", brightness)
    grey = pictures[:, :1]
    expected = (grey - grey.min()) / (grey.max() - grey.min())
    assert (teacher(pictures)["depth"] - expected).abs().max() < 0.05  # half a pixel lost in resizing, not a shift


def test_depth_anything_draws_disparity(depth_anything):
    """The library gives a disparity, so 1 / distance is affine in it."""
    pictures = photos(2, 42, 60)
    depth = load_teacher("depth-anything", depth_anything, far_over_near=10.0)(pictures)["depth"]
    assert depth.shape == (2, 1, 42, 60)
    net = DepthAnythingForDepthEstimation.from_pretrained(depth_anything).eval()
    processor = DPTImageProcessorPil.from_pretrained(depth_anything)
    with torch.no_grad():
        drawn = net(**processor(images=arrays(pictures), return_tensors="pt"))
    theirs = processor.post_process_depth_estimation(drawn, target_sizes=[(42, 60)] * 2)
    for ours, output in zip(depth, theirs, strict=True):
        disparity = output["predicted_depth"].double()
        assert disparity.std() > 0
        inverse = (disparity - disparity.min()) / (disparity.max() - disparity.min())  # 1 nearest
        distance = 1 / (0.1 + 0.9 * inverse)  # 1 .. 10
        torch.testing.assert_close(ours[0].double(), (distance - 1) / 9, atol=1e-4, rtol=0)
        assert ours.min() == 0
        assert ours.max() == 1


def test_metric_depth_anything_draws_distance(tmp_path):
    folder = depth_anything_folder(tmp_path, depth_estimation_type="metric", max_depth=20)
    pictures = photos(1, 56, 56)
    teacher = load_teacher("depth-anything", folder)
    assert "far_over_near" not in teacher.settings
    net = DepthAnythingForDepthEstimation.from_pretrained(folder).eval()
    processor = DPTImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        metres = net(**processor(images=arrays(pictures), return_tensors="pt")).predicted_depth[0]
    expected = (metres - metres.min()) / (metres.max() - metres.min())
    torch.testing.assert_close(teacher(pictures)["depth"][0, 0], expected, atol=1e-4, rtol=0)


def normals_folder(folder: Path, name: str) -> str:
    """Build a tiny model of transformers' normal estimators."""
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(4)
    if name == "tipsv2_dpt":
        from transformers import Tipsv2DptConfig, Tipsv2DptForNormalEstimation, Tipsv2DptImageProcessor
        from transformers.models.tipsv2 import Tipsv2VisionConfig

        backbone = Tipsv2VisionConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        )
        config = Tipsv2DptConfig(backbone_config=backbone, neck_hidden_sizes=[16, 16, 32, 32], fusion_hidden_size=16)
        net, processor = (
            Tipsv2DptForNormalEstimation(config),
            Tipsv2DptImageProcessor(size={"height": 56, "width": 56}),
        )
    else:
        from transformers import Sapiens2Config, Sapiens2ForNormalEstimation, Sapiens2ImageProcessor

        config = Sapiens2Config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            image_size=[64, 48],
            num_first_full_attention_layers=1,
            num_last_full_attention_layers=1,
            num_labels=3,
            head_config={
                "upsample_out_channels": [16, 16, 8, 8],
                "upsample_kernel_sizes": [4, 4, 4, 4],
                "conv_out_channels": [16],
                "conv_kernel_sizes": [1],
            },
        )
        net = Sapiens2ForNormalEstimation(config)
        processor = Sapiens2ImageProcessor(size={"height": 64, "width": 48}, do_pad=True)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("name", "frame"), [("tipsv2_dpt", None), ("sapiens2", "opencv")])
def test_normal_estimation_is_the_librarys_in_our_frame(name, frame, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForNormalEstimation

    folder = normals_folder(tmp_path, name)
    pictures = photos(2, 40, 60)
    normals = load_teacher("normal-estimation", folder, frame=frame)(pictures)["normals"]
    assert normals.shape == (2, 3, 40, 60)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2, 40, 60))

    net, processor = AutoModelForNormalEstimation.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        drawn = net(**processor(images=arrays(pictures), return_tensors="pt"))
    extra = {"source_sizes": [(40, 60)] * 2} if name == "sapiens2" else {}
    theirs = processor.post_process_normal_estimation(drawn, target_sizes=[(40, 60)] * 2, **extra)
    signs = torch.tensor([-1.0, 1, 1] if name == "tipsv2_dpt" else [1.0, -1, -1])[:, None, None]
    for ours, output in zip(normals, theirs, strict=True):
        torch.testing.assert_close(ours, F.normalize(output["normals"], dim=0) * signs, atol=1e-3, rtol=0)


def test_an_undocumented_frame_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="not known in which frame models of the kind sapiens2 draw normals"):
        load_teacher("normal-estimation", normals_folder(tmp_path, "sapiens2"))
    assert MODEL_FRAMES.keys() == {"tipsv2_dpt"}


def test_normal_estimation_without_torchvision_says_what_is_missing(tmp_path, monkeypatch):
    import transformers

    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *a, **k: SimpleNamespace(model_type="tipsv2_dpt"))

    def missing(*args, **kwargs):
        raise ImportError("requires the Torchvision library")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", missing)
    with pytest.raises(ImportError, match="pip install torchvision"):
        load_teacher("normal-estimation", str(tmp_path))


# Marigold


def test_marigold_depth_grows_with_distance(tmp_path):
    pipe = marigold(MarigoldDepthPipeline, prediction_type="depth")
    pictures = photos(3, 24, 40)
    depth = load_teacher("marigold-depth", saved(pipe, tmp_path))(pictures)["depth"]
    theirs = own_prediction(pipe, pictures)  # 0 = near plane, 1 = far plane
    assert depth.shape == theirs.shape == (3, 1, 24, 40)
    low, high = theirs.amin((1, 2, 3), keepdim=True), theirs.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(depth, (theirs - low) / (high - low), atol=1e-3, rtol=0)


def test_marigold_disparity_grows_with_nearness(tmp_path):
    pipe = marigold(MarigoldDepthPipeline, prediction_type="disparity")
    pictures = photos(1, 24, 40)
    teacher = load_teacher("marigold-depth", saved(pipe, tmp_path), far_over_near=3.0)
    theirs = own_prediction(pipe, pictures)
    distance = 1 / (1 / 3 + 2 / 3 * (theirs - theirs.min()) / (theirs.max() - theirs.min()))
    torch.testing.assert_close(teacher(pictures)["depth"], (distance - 1) / 2, atol=1e-3, rtol=0)
    assert teacher.settings["far_over_near"] == 3.0


def test_marigold_normals_look_as_diffusers_draws_them(tmp_path):
    """visualize_normals: red = right, green = up, blue = to the viewer, which is our opengl picture."""
    pipe = marigold(MarigoldNormalsPipeline, prediction_type="normals")
    pictures = photos(2, 24, 40)
    normals = load_teacher("marigold-normals", saved(pipe, tmp_path))(pictures)["normals"]
    drawn = pipe.image_processor.visualize_normals(own_prediction(pipe, pictures))
    ours = display_map(normals, "normals", "opengl")
    for one, theirs in zip(ours, drawn, strict=True):
        picture = torch.from_numpy(np.array(theirs)).permute(2, 0, 1) / 255
        assert (one - picture).abs().max() < 1.5 / 255
    assert normals.std() > 0.05


@pytest.mark.parametrize("properties", [LIGHTING, APPEARANCE], ids=["lighting", "appearance"])
def test_marigold_iid_looks_as_diffusers_draws_it(properties, tmp_path):
    """visualize_intrinsics encodes linear light with 1 / 2.2, and leaves sRGB as it is."""
    targets = properties["target_names"]
    pipe = marigold(
        MarigoldIntrinsicsPipeline, len(targets), prediction_type="intrinsics", target_properties=properties
    )
    pictures = photos(2, 24, 40)
    teacher = load_teacher("marigold-iid", saved(pipe, tmp_path))
    maps = teacher(pictures)
    assert tuple(maps) == teacher.intrinsics == (("albedo", "shading") if properties is LIGHTING else ("albedo",))
    prediction = own_prediction(pipe, pictures)
    drawn = pipe.image_processor.visualize_intrinsics(prediction, properties)
    for i, theirs in enumerate(drawn):
        picture = torch.from_numpy(np.array(theirs["albedo"])).permute(2, 0, 1) / 255
        ours = maps["albedo"][i] ** (1 / 2.2) if properties is LIGHTING else display_map(maps["albedo"], "albedo")[i]
        assert (ours - picture).abs().max() < 1.5 / 255
    if properties is LIGHTING:
        shading = prediction.unflatten(0, (2, 3))[:, 1]  # linear light, up to scale
        grey = (shading[:, 0] + shading[:, 1] + shading[:, 2]) / 3
        for ours, one in zip(maps["shading"], grey, strict=True):
            torch.testing.assert_close(ours[0], one / one.max(), atol=1e-3, rtol=0)


def test_marigold_refuses_another_kind(tmp_path):
    folder = saved(marigold(MarigoldNormalsPipeline, prediction_type="normals"), tmp_path / "normals")
    with pytest.raises(ValueError, match="predicts normals, but MarigoldDepthPipeline supports depth or disparity"):
        load_teacher("marigold-depth", folder)
    properties = {"target_names": ["material"], "material": {"prediction_space": "srgb"}}
    pipe = marigold(MarigoldIntrinsicsPipeline, prediction_type="intrinsics", target_properties=properties)
    with pytest.raises(ValueError, match="predicts material: neither albedo nor shading"):
        load_teacher("marigold-iid", saved(pipe, tmp_path / "material"))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, LCMScheduler])
def test_marigold_labels_a_picture_alike_in_every_batch(scheduler, tmp_path):
    config = {"prediction_type": "depth", "scheduler": scheduler}
    if scheduler is LCMScheduler:
        config["scheduler"] = lambda **kwargs: LCMScheduler(original_inference_steps=10, **kwargs)
    folder = saved(marigold(MarigoldDepthPipeline, **config), tmp_path)
    teacher = load_teacher("marigold-depth", folder, ensemble=3, steps=3, seed=5)
    pictures = photos(3, 24, 24)
    together, alone = teacher(pictures)["depth"], teacher(pictures[2:])["depth"]
    torch.testing.assert_close(together[2:], alone, atol=2e-3, rtol=0)
    other = load_teacher("marigold-depth", folder, ensemble=3, steps=3, seed=6)(pictures[2:])["depth"]
    assert (other - alone).abs().max() > 1e-2
    assert teacher.settings == {"resolution": 32, "steps": 3, "ensemble": 3, "seed": 5, "dtype": "float32"}


# Our own


def test_intrinsic_loras_are_teachers(tmp_path):
    pipe = IntrinsicLoRAPipeline(**tiny.components(), default_processing_resolution=32)
    StableDiffusionPipeline(
        **pipe.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(tmp_path / "base")
    tiny.write_loras(tmp_path / "loras", pipe.unet, ("normals", "depth"))
    base, loras = str(tmp_path / "base"), str(tmp_path / "loras")
    teacher = load_teacher("intrinsic-lora", base, loras=loras, resolution=32)
    assert teacher.intrinsics == ("normals", "depth")
    pictures = photos(2, 24, 40)
    pipe.load_intrinsics(loras)
    theirs = pipe(pictures, intrinsics=["normals", "depth"])
    maps = teacher(pictures)
    for name in teacher.intrinsics:
        torch.testing.assert_close(maps[name], theirs[name], atol=MAP_ERROR, rtol=0)
    # Other LoRAs on the same base are another teacher.
    tiny.write_loras(tmp_path / "others", pipe.unet, ("depth", "normals"))
    assert load_teacher("intrinsic-lora", base, loras=str(tmp_path / "others")).version != teacher.version
    assert load_teacher("intrinsic-lora", base, loras=loras).version == teacher.version
    with pytest.raises(ValueError, match="contains no I-LoRA; specify its LoRAs"):
        load_teacher("intrinsic-lora", base)


def test_a_folder_is_stamped_by_name_and_weights(depth_anything):
    teacher = load_teacher("depth-anything", depth_anything)
    assert teacher.model == Path(depth_anything).name
    assert "model card" in teacher.licence
    assert teacher.version == load_teacher("depth-anything", depth_anything).version
    assert teacher.name in TEACHERS
    assert isinstance(teacher, LoadedTeacher)
