"""Light rigs: JSON and back, the command line's form, every refusal, hostile names, and what the presets light.

Run as a script, this file writes the tables of docs/rig.md.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from intrinsic_lora.intrinsics.pictures import write_png
from intrinsic_lora.intrinsics.relight import (
    LIGHT_FIELDS,
    LIGHT_TYPES,
    PRESET_DESCRIPTIONS,
    PRESETS,
    Ambient,
    Environment,
    Light,
    Point,
    Rim,
    Spot,
    Sun,
    make_gbuffer,
    mirror,
    parse_light,
    read_rig,
    relight,
    rig_from_json,
    rig_to_json,
    write_rig,
)
from PIL import Image

DOCS = Path(__file__).parents[3] / "docs/rig.md"
IMAGES = {
    "mask.png": torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(1)),
    "другая маска": torch.ones(1, 1, 4, 6),
    "sky.hdr": torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(2)),
    "room": torch.ones(1, 3, 2, 4),
}
fast = settings(max_examples=150, deadline=None)


def rig(*lights, **document):
    return json.dumps({"format": "intrinsic-lora-rig", "version": 1, "lights": list(lights)} | document)


def same(a, b):
    """Field by field; pictures must be the very same tensors."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert x is y if isinstance(x, torch.Tensor) else x == y, field.name
    return True


def values(name, field):
    """Hypothesis strategy for what a JSON value of this field may be."""
    by_kind = {
        "number": st.floats(field.min, field.max) | st.integers(math.ceil(field.min), math.floor(field.max)),
        "color": st.lists(st.floats(field.min, field.max), min_size=3, max_size=3),
        "switch": st.booleans(),
        "text": st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200),
        "picture": st.sampled_from([k for k in IMAGES if (IMAGES[k].shape[1] == 1) == (name == "mask")]),
    }
    return by_kind[field.kind] | st.none() if field.optional else by_kind[field.kind]


def entries(kind):
    """Hypothesis strategy for a light of one type as JSON, any subset of fields."""
    fields = {name: values(name, field) for name, field in LIGHT_FIELDS[kind].items()}
    required = {"type": st.just(kind)} | ({"image": fields.pop("image")} if "image" in fields else {})
    return st.fixed_dictionaries(required, optional=fields)


any_entry = st.sampled_from(list(LIGHT_TYPES)).flatmap(entries)


# --- the table


@pytest.mark.parametrize("kind", LIGHT_TYPES)
def test_the_table_is_complete_and_lies_within_itself(kind):
    fields = LIGHT_FIELDS[kind]
    assert fields.keys() == {f.name for f in dataclasses.fields(LIGHT_TYPES[kind])}
    for name, field in fields.items():
        assert field.tooltip.endswith("."), name
        if field.kind == "number":
            assert field.min <= field.soft_min < field.soft_max <= field.max, name
            assert 0 < field.step <= field.soft_max - field.soft_min, name
            assert field.default is None or field.soft_min <= field.default <= field.soft_max, name


def test_every_kind_of_light_is_in_the_table():
    def leaves(cls):
        return {cls, *(leaf for sub in cls.__subclasses__() for leaf in leaves(sub))}

    assert set(LIGHT_TYPES.values()) == leaves(Light) - {Light}


# --- round trips


@fast
@given(st.lists(any_entry, max_size=6))
def test_json_to_lights_to_json_keeps_everything(lights):
    first = rig_from_json(rig(*lights), IMAGES)
    text = rig_to_json(first, IMAGES)
    assert all(same(a, b) for a, b in zip(first, rig_from_json(text, IMAGES), strict=True))
    for entry, light, written in zip(lights, first, json.loads(text)["lights"], strict=True):
        assert written.keys() == LIGHT_FIELDS[entry["type"]].keys() | {"type"}  # all fields are written
        assert entry.items() <= written.items()
        for name in LIGHT_FIELDS[entry["type"]].keys() - entry.keys():  # what was left out is the dataclass' default
            default = next(f.default for f in dataclasses.fields(light) if f.name == name)
            assert getattr(light, name) == default


@pytest.mark.parametrize("kind", [kind for kind in LIGHT_TYPES if kind != "environment"])
def test_a_light_of_nothing_but_its_type_is_the_dataclass_with_its_defaults(kind):
    assert same(rig_from_json(rig({"type": kind}))[0], LIGHT_TYPES[kind]())


def test_an_empty_rig_is_a_rig():
    assert rig_from_json(rig_to_json([])) == ()


def test_hex_colours_are_srgb():
    """Against the definition of sRGB, written out."""
    (light,) = rig_from_json(rig({"type": "sun", "color": "#FFcc08"}))
    expected = (1.0, ((0xCC / 255 + 0.055) / 1.055) ** 2.4, 8 / 255 / 12.92)
    assert light.color == pytest.approx(expected, rel=1e-6)
    assert json.loads(rig_to_json([light]))["lights"][0]["color"] == list(light.color)


def test_optimised_lights_are_written_as_numbers():
    light = Sun(az=torch.tensor(12.5, requires_grad=True), color=torch.tensor([1.0, 0.5, 0.25]))
    (back,) = rig_from_json(rig_to_json([light]))
    assert (back.az, back.color) == (12.5, (1.0, 0.5, 0.25))


def test_a_muted_light_stays_in_the_rig_and_lights_nothing():
    lights = rig_from_json(rig({"type": "sun", "enabled": False}, {"type": "ambient", "intensity": 0.25}))
    assert [light.enabled for light in rig_from_json(rig_to_json(lights))] == [False, True]
    assert relight(ball(), lights).shading.unique().tolist() == [0.25]


# --- refusals


@pytest.mark.parametrize(
    ("light", "words"),
    [
        (5, "Light 2 must be an object.*not 5"),
        ({}, 'Light 2 has no "type"; choose from sun, point'),
        ({"type": "snu"}, "Light 2 has an unknown type 'snu'; did you mean 'sun'"),
        ({"type": "disco"}, "Light 2 has an unknown type 'disco'; choose from sun, point, spot, rim, ambient"),
        ({"type": ["sun"]}, r"Light 2 has an unknown type \['sun'\]"),
        ({"type": "sun", "softnes": 1}, r"Light 2 \(sun\) has an unknown field 'softnes'; did you mean 'softness'"),
        ({"type": "sun", "x": 1}, r"Light 2 \(sun\) has an unknown field 'x'; "),
        ({"type": "ambient", "az": 1}, r"Light 2 \(ambient\) has an unknown field 'az'; choose from color, kelvin"),
        ({"type": "sun", "el": 90.5}, r"Light 2 \(sun\), el: must be -90 to 90, not 90.5"),
        ({"type": "sun", "el": "35"}, r"\(sun\), el: must be a number, not '35'"),
        ({"type": "sun", "intensity": True}, r"\(sun\), intensity: must be a number, not True"),
        ({"type": "sun", "intensity": -0.1}, r"\(sun\), intensity: must be 0 to 1000000, not -0.1"),
        ({"type": "sun", "intensity": None}, r"\(sun\), intensity: must be a number, not None"),
        ({"type": "sun", "intensity": math.nan}, r"\(sun\), intensity: must be 0 to 1000000, not nan"),
        ({"type": "sun", "az": math.inf}, r"\(sun\), az: must be .* not inf"),
        ({"type": "sun", "az": 10**400}, r"\(sun\), az: must be .* not 1000.*\.\.\."),
        ({"type": "sun", "softness": -1}, r"\(sun\), softness: must be 0 to"),
        ({"type": "sun", "kelvin": 999}, r"\(sun\), kelvin: must be 1000 to 40000, not 999"),
        ({"type": "sun", "shadow": 1}, r"\(sun\), shadow: must be true or false, not 1"),
        ({"type": "sun", "enabled": "no"}, r"\(sun\), enabled: must be true or false, not 'no'"),
        ({"type": "sun", "name": 7}, r"\(sun\), name: must be text of at most 200 characters in one line, not 7"),
        ({"type": "sun", "name": "x" * 201}, r"\(sun\), name: must be text of at most 200"),
        ({"type": "sun", "name": "a\nb"}, r"\(sun\), name: must be text .* in one line"),
        ({"type": "sun", "name": "\ud800"}, r"\(sun\), name: must be text"),
        ({"type": "sun", "color": "red"}, r"\(sun\), color: must be three linear numbers.*not 'red'"),
        ({"type": "sun", "color": "#ff00٣0"}, r"\(sun\), color: must be three"),
        ({"type": "sun", "color": [1, 1]}, r"\(sun\), color: must be three linear numbers"),
        ({"type": "sun", "color": [1, 1, True]}, r"\(sun\), color: must be three linear numbers"),
        ({"type": "sun", "color": [1, 1, -0.5]}, r"\(sun\), color: components must be 0 to .* not -0.5"),
        ({"type": "sun", "color": [1, 1, math.nan]}, r"\(sun\), color: components must be .* not nan"),
        ({"type": "spot", "angle": 180}, r"\(spot\), angle: must be 0.1 to 179.9, not 180"),
        ({"type": "spot", "blend": 1.1}, r"\(spot\), blend: must be 0 to 1, not 1.1"),
        ({"type": "rim", "width": 0}, r"\(rim\), width: must be 0.01 to 1, not 0"),
        ({"type": "environment"}, r'Light 2 \(environment\) needs "image"'),
        ({"type": "environment", "image": None}, r"\(environment\), image: must be text"),
        ({"type": "sun", "mask": "mask"}, r"\(sun\), mask: there is no picture 'mask'; choose from mask.png, "),
        ({"type": "sun", "mask": "room"}, r"mask: 'room' must have shape \(1, 1, H, W\), not \(1, 3, 2, 4\)"),
        ({"type": "environment", "image": "mask.png"}, r"image: 'mask.png' must have shape \(1, 3, H, W\)"),
    ],
)
def test_a_bad_light_is_refused_in_one_sentence_that_names_it(light, words):
    with pytest.raises(ValueError, match=words) as error:
        rig_from_json(rig({"type": "ambient"}, light), IMAGES)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON.*line 1"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[]", 'must be a JSON object with "format": "intrinsic-lora-rig"'),
        ("{}", "not a light rig"),
        (rig(format="nuke"), "not a light rig"),
        (rig(format=["intrinsic-lora-rig"]), "not a light rig"),
        (rig(version=2), r"made by a newer version.*rig version 2, this one reads 1\): update intrinsic-lora"),
        (rig(version=0), "version must be 1, not 0"),
        (rig(version="1"), "version must be 1, not '1'"),
        (rig(version=True), "version must be 1, not True"),
        (rig(version=None), "version must be 1, not None"),
        (rig(ligths=[]), "unknown field 'ligths'; did you mean 'lights'"),
        (rig(lights={}), 'needs "lights": a list'),
        (rig(lights=None), 'needs "lights": a list'),
        (rig(*[{"type": "sun"}] * 65), "at most 64 lights, not 65"),
        (rig() + " " * 10**6, "too long: at most 1 MB"),
    ],
)
def test_a_text_that_is_no_rig_is_refused_in_one_sentence(text, words):
    with pytest.raises(ValueError, match=words) as error:
        rig_from_json(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@fast
@given(any_entry, st.data())
def test_whatever_stands_in_a_field_it_is_a_light_or_one_sentence(entry, data):
    name = data.draw(st.sampled_from(["type", *LIGHT_FIELDS[entry["type"]]]))
    text = rig(entry | {name: data.draw(json_values)})
    try:
        lights = rig_from_json(text, IMAGES)
    except ValueError as error:
        assert str(error).startswith("Light 1 ") and "\n" not in str(error)
    else:
        rig_to_json(lights, IMAGES)


@pytest.mark.parametrize(
    ("lights", "words"),
    [
        ([Sun(), Sun(az=torch.tensor([1.0, 2.0]))], r"Light 2 \(sun\), az: .* for one picture; this tensor is \(2,\)"),
        ([Sun(color=torch.ones(2, 3))], r"Light 1 \(sun\), color: .* this tensor is \(2, 3\)"),
        ([Sun(mask=torch.ones(1, 1, 4, 6))], r"Light 1 \(sun\), mask: .* by its name; give it as images="),
        ([Sun(el=100)], r"Light 1 \(sun\), el: must be -90 to 90, not 100"),
        ([Sun(az=torch.tensor(math.nan))], r"Light 1 \(sun\), az: .* not nan"),
        ([Sun()] * 65, "at most 64 lights, not 65"),
        ([Light()], "A rig cannot contain a Light; its lights are: sun, "),
    ],
)
def test_what_could_not_be_read_again_is_not_written(lights, words):
    with pytest.raises(ValueError, match=words):
        rig_to_json(lights, IMAGES)


# --- the command line's form


def word(name, value):
    """Convert a JSON value to the command line's form."""
    if isinstance(value, bool):
        return f"{name}={'on' if value else 'off'}"
    if isinstance(value, list):
        return f"{name}=" + ",".join(map(repr, value))
    return f"{name}={value!r}" if isinstance(value, int | float) else f"{name}='{value}'"


@fast
@given(any_entry)
@example({"type": "point", "x": 0.3, "y": 0.2, "height": 1, "color": "#ffcc88", "shadow": False})
def test_words_mean_what_json_means(entry):
    entry = {k: v for k, v in entry.items() if v is not None and v != "" and not (k == "name" and "'" in v)}
    text = " ".join([entry["type"], *(word(k, v) for k, v in entry.items() if k != "type")])
    assert same(parse_light(text, IMAGES), rig_from_json(rig(entry), IMAGES)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sun az=-40 el=35 kelvin=3200 intensity=2", Sun(az=-40.0, el=35.0, kelvin=3200.0, intensity=2.0)),
        ("  ambient   intensity=.1 ", Ambient(intensity=0.1)),
        ("spot shadow=No enabled=TRUE", Spot(shadow=False)),
        ("point color=1,.5,0 name='desk lamp'", Point(color=(1.0, 0.5, 0.0), name="desk lamp")),
        ("rim shadow=0", Rim(shadow=False)),
    ],
)
def test_words_by_hand(text, expected):
    assert same(parse_light(text), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with its type"),
        ("az=3", "begins with its type"),
        ("snu az=3", "The light has an unknown type 'snu'; did you mean 'sun'"),
        ("sun azimuth=3", r"The light \(sun\) has an unknown field 'azimuth'; "),
        ("sun 3", "written field=value, without spaces, not '3'"),
        ("sun az= 3", "written field=value, without spaces, not 'az='"),
        ("sun az=1 az=2", "sets 'az' twice"),
        ("sun type=rim", "sets 'type' twice"),
        ("sun name='key", "a quote that is not closed"),
        ("sun az=left", r"The light \(sun\), az: must be a number, not 'left'"),
        ("sun az=nan", r"\(sun\), az: must be .* not nan"),
        ("sun el=91", r"\(sun\), el: must be -90 to 90, not 91"),
        ("sun shadow=perhaps", r"\(sun\), shadow: must be true or false, not 'perhaps'"),
        ("sun color=1,2", r"\(sun\), color: must be three linear numbers"),
        ("sun color=1,2,x", r"\(sun\), color: must be three linear numbers"),
        ("sun mask=mask.png", r"\(sun\), mask: there is no picture 'mask.png'; no pictures were given"),
        ("environment", 'needs "image"'),
    ],
)
def test_bad_words_are_refused_in_one_sentence(text, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_light(text)
    assert "\n" not in str(error.value)


# --- files


def test_a_rig_file_finds_its_pictures_beside_it(tmp_path):
    mask = torch.tensor([[0.0, 64 / 255], [128 / 255, 1.0]])[None, None]  # (1,1,2,2), exact in 8 bits
    panorama = torch.rand(1, 3, 4, 8)
    write_png(tmp_path / "m.png", mask)
    write_png(tmp_path / "sky.png", panorama)
    images = {"m.png": mask, "sky.png": panorama}
    lights = (Sun(name="ключ", mask=mask), Rim(mask=mask, enabled=False), Environment(image=panorama, rotation=30.0))
    write_rig(tmp_path / "rig.json", lights, images)
    sun, rim, environment = read_rig(tmp_path / "rig.json")
    assert torch.allclose(sun.mask, mask, atol=1e-6) and sun.mask is rim.mask
    assert (sun.name, rim.enabled, environment.rotation) == ("ключ", False, 30.0)
    # An 8-bit panorama is sRGB: half a level of error at most, and the file's own rounding.
    encoded = torch.where(
        environment.image <= 0.0031308, environment.image * 12.92, 1.055 * environment.image ** (1 / 2.4) - 0.055
    )
    assert torch.allclose(encoded, panorama, atol=0.51 / 255)
    assert read_rig(tmp_path / "rig.json", images)[2].image is panorama  # names that are given are not read
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.png", "rig.json", "sky.png"]


def test_a_mask_painted_on_transparency_is_its_alpha(tmp_path):
    Image.new("LA", (3, 2), (255, 0)).save(tmp_path / "m.png")
    (tmp_path / "rig.json").write_text(rig({"type": "sun", "mask": "m.png"}))
    assert read_rig(tmp_path / "rig.json")[0].mask.unique().tolist() == [0]


def test_a_rig_file_from_notepad(tmp_path):
    (tmp_path / "rig.json").write_text(rig({"type": "sun"}), encoding="utf-8-sig")
    assert len(read_rig(tmp_path / "rig.json")) == 1


HOSTILE = ["../m.png", "..", "/etc/passwd", "sub/m.png", "sub\\m.png", "C:m.png", "m.png:stream", ".m.png", "\\\\host"]


@pytest.mark.parametrize("name", [*HOSTILE, ""])
def test_names_that_could_lead_out_of_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "rigs"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):
        write_png(place / "m.png", torch.ones(1, 2, 2))
        write_png(place / ".m.png", torch.ones(1, 2, 2))
    (folder / "rig.json").write_text(rig({"type": "ambient"}, {"type": "sun", "mask": name}))
    with pytest.raises(ValueError, match=r"rig.json: Light 2 \(sun\), mask: .* must be a plain file name"):
        read_rig(folder / "rig.json")
    mask = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="must be a plain file name"):
        write_rig(folder / "new.json", [Sun(mask=mask)], {name: mask})
    assert not (folder / "new.json").exists()


def test_files_that_are_missing_or_no_rigs_are_named(tmp_path):
    path = tmp_path / "rig.json"
    with pytest.raises(FileNotFoundError, match=r"no rig file .*rig\.json"):
        read_rig(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"rig\.json is not a light rig: it is not UTF-8"):
        read_rig(path)
    path.write_text(" " * 5_000_000)
    with pytest.raises(ValueError, match=r"rig\.json: .* too long"):
        read_rig(path)
    path.write_text(rig({"type": "sun", "mask": "gone.png"}))
    with pytest.raises(
        FileNotFoundError, match=r"rig\.json: Light 1 \(sun\), mask: .*no file 'gone\.png' in the folder"
    ):
        read_rig(path)
    (tmp_path / "gone.png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file 'gone\.png'"):
        read_rig(path)
    with pytest.raises(FileNotFoundError, match="folder"):
        write_rig(tmp_path / "none/rig.json", [])


def test_a_rig_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_rig(tmp_path / "rig.json", [Sun()])
    with pytest.raises(ValueError, match="el: must be"):
        write_rig(tmp_path / "rig.json", [Sun(el=100)])
    assert len(read_rig(tmp_path / "rig.json")) == 1


# --- presets, judged by what they light


def ball(n=65):
    """Build a white ball that fills the frame, without background and depth, so that nothing casts a shadow."""
    y, x = torch.meshgrid(torch.linspace(1, -1, n), torch.linspace(-1, 1, n), indexing="ij")
    z = (1 - x * x - y * y).clamp(min=0).sqrt()
    return make_gbuffer(torch.ones(1, 3, n, n), torch.stack([x, y, z])[None])


def brightness(name):
    """Shading of the ball under a preset, at its left, right, top, bottom and centre: averages of small discs."""
    gray = relight(ball(), PRESETS[name]).shading.mean(1)[0]  # (65,65)
    spots = {"left": (32, 8), "right": (32, 56), "top": (8, 32), "bottom": (56, 32), "front": (32, 32)}
    return {k: gray[y - 2 : y + 3, x - 2 : x + 3].mean().item() for k, (y, x) in spots.items()}


def test_the_nine_presets_have_descriptions_and_survive_a_file(tmp_path):
    names = "rembrandt loop butterfly split rim three-point clamshell window moonlight"
    assert list(PRESETS) == list(PRESET_DESCRIPTIONS) == names.split()
    for name, lights in PRESETS.items():
        assert PRESET_DESCRIPTIONS[name].endswith(".") and "\n" not in PRESET_DESCRIPTIONS[name]
        write_rig(tmp_path / "rig.json", lights)
        assert all(same(a, b) for a, b in zip(lights, read_rig(tmp_path / "rig.json"), strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_blows_out_or_goes_black(name):
    """A surface turned to the light gets about the photo's brightness, one turned away is dark but not black."""
    gray = (relight(ball(), PRESETS[name]).shading * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1)
    assert gray.max() < 1.5 if "rim" in name or name == "three-point" else gray.max() < 1.3  # rims may: edges alone
    assert gray.min() > 0.03
    if name not in ("moonlight", "rim"):
        assert gray.max() > 0.8


@pytest.mark.parametrize("name", ["rembrandt", "loop", "split", "three-point", "window", "moonlight"])
def test_the_key_is_on_the_left_and_mirror_puts_it_on_the_right(name):
    b = brightness(name)
    assert b["left"] > 1.3 * b["right"]
    here = relight(ball(), PRESETS[name]).shading
    mirrored = relight(ball(), mirror(PRESETS[name])).shading
    assert torch.allclose(mirrored, here.flip(-1), atol=1e-5)


def test_presets_light_what_their_names_promise():
    b = {name: brightness(name) for name in PRESETS}
    for name in ("butterfly", "clamshell", "rim"):  # symmetric
        assert b[name]["left"] == pytest.approx(b[name]["right"], abs=1e-4)
    assert b["butterfly"]["top"] > 2 * b["butterfly"]["bottom"]
    assert b["clamshell"]["bottom"] > 1.5 * b["butterfly"]["bottom"]  # what the fill from below is for
    # Split: light from exactly the side leaves half of the ball dark, the front is the border between.
    gray = relight(ball(), PRESETS["split"]).shading.mean(1)[0]
    dark = gray.min()
    assert (gray[32, 34:] < 1.2 * dark).all() and gray[32, 20] > 3 * dark
    assert b["rim"]["left"] > 2 * b["rim"]["front"]
    # From split to loop the key comes to the front, and the fill grows.
    contrast = [b[name]["left"] / b[name]["right"] for name in ("split", "rembrandt", "loop", "clamshell")]
    assert contrast == sorted(contrast, reverse=True)
    # Rembrandt's key is high: upper left is its brightest eighth.
    y, x = divmod(relight(ball(), PRESETS["rembrandt"]).shading.mean(1).argmax().item(), 65)
    assert y < 25 and x < 20
    # The third of three points: without it the far edge is darker.
    no_rim = relight(ball(), [light for light in PRESETS["three-point"] if not isinstance(light, Rim)]).shading
    assert b["three-point"]["right"] > 1.2 * no_rim.mean(1)[0, 30:35, 54:59].mean()
    # Cool and warm, dim and not.
    tint = {name: relight(ball(), lights).shading.mean((0, 2, 3)) for name, lights in PRESETS.items()}
    assert tint["moonlight"][2] > 1.5 * tint["moonlight"][0] and tint["window"][2] > tint["window"][0]
    assert tint["rembrandt"][0] > tint["rembrandt"][2]
    assert b["moonlight"]["front"] < 0.3 * b["window"]["front"]


def test_the_window_is_soft():
    """A box before a wall: the edge of its shadow is less steep under the window than under split's lamp."""
    n = 96
    depth = torch.full((1, 1, n, n), 3.0)
    depth[..., 30:66, 30:50] = 2.6
    depth[..., 0, 0] = 1  # makes the depth range, and with it the thickness of things, large
    wall = torch.zeros(1, 3, n, n)
    wall[:, 2] = 1
    box = make_gbuffer(torch.ones(1, 3, n, n), wall, depth, depth_kind="metric")

    def steepest(name):
        key = dataclasses.replace(PRESETS[name][0], az=-50.0, el=0.0)
        on_the_wall = relight(box, [key]).shadow[0, 0, 48, 55:90]  # right of the box, away from its foot
        return on_the_wall.diff().abs().max().item()

    assert 0 < steepest("window") < 0.6 * steepest("split")


@given(any_entry)
@fast
def test_mirror_twice_is_the_same_rig(entry):
    (light,) = rig_from_json(rig(entry), IMAGES)
    (back,) = mirror(mirror([light]))
    for field in dataclasses.fields(light):
        x, y = getattr(light, field.name), getattr(back, field.name)
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y)
        else:
            assert x == (pytest.approx(y, abs=1e-9) if isinstance(x, float) else y)


def test_a_mirrored_environment_lights_the_mirrored_side():
    light = Environment(image=IMAGES["sky.hdr"], rotation=25.0)
    here, there = (relight(ball(), rig).shading for rig in ([light], mirror([light])))
    assert torch.allclose(there, here.flip(-1), atol=1e-4)


# --- documentation


def field_table():
    rows = {}  # a field that means the same in several types is one row: [(name, field), types]
    for kind, fields in LIGHT_FIELDS.items():
        for name, field in fields.items():
            rows.setdefault((name, repr(field)), (field, []))[1].append(kind)
    lines = ["| field | of | value | default | meaning |", "|---|---|---|---|---|"]
    for (name, _), (field, kinds) in rows.items():
        of = "all" if len(kinds) == len(LIGHT_FIELDS) else ", ".join(kinds)
        value = {
            "number": f"{field.min:.7g} to {field.max:.7g}",
            "color": '[r, g, b] or "#rrggbb"',
            "switch": "true, false",
            "text": "text",
            "picture": "a name",
        }[field.kind] + ", null" * field.optional
        default = "required" if field.default is None and not field.optional else json.dumps(field.default)
        lines.append(f"| `{name}` | {of} | {value} | {default} | {field.tooltip} |")
    return "\n".join(lines)


def preset_table():
    rows = [f"| `{name}` | {text} |" for name, text in PRESET_DESCRIPTIONS.items()]
    return "\n".join(["| preset | |", "|---|---|", *rows])


def filled_in(text):
    for part, table in (("fields", field_table()), ("presets", preset_table())):
        text = re.sub(rf"(<!-- {part}:.*?-->\n).*?(<!-- end of {part} -->)", rf"\1\n{table}\n\n\2", text, flags=re.S)
    return text


def test_the_documentation_says_what_the_code_does():
    text = DOCS.read_text(encoding="utf-8")
    assert filled_in(text) == text, "run: python tests/intrinsics/relight/test_rig.py"
    (example,) = re.findall(r"```json\n(.*?)```", text, flags=re.S)
    assert len(rig_from_json(example, {"person.png": torch.ones(1, 1, 2, 2)})) == 4
    assert [parse_light(light).intensity for light in re.findall(r'--light "(.*?)"', text)] == [2.0, 1.0, 0.1]


if __name__ == "__main__":
    DOCS.write_text(filled_in(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
