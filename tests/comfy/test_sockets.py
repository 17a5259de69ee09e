"""Sockets and widgets that differ between the versions of ComfyUI: colours, and the lights of core."""

from pathlib import Path

import numpy as np
import pytest
from intrinsic_lora.tests.comfy.client import Client, Graph

INSIDE = (Path(__file__).parent / "inside.py").read_text()
LATER = "from comfy_api.latest import io\nio.Load3DLightInfo = io.Custom('LOAD3D_LIGHT_INFO')\n"
LIGHT_INFO = """
from comfy_api.latest import io
for name in ("Light", "Relight"):
    schema = NODES[f"IntrinsicLora_{name}"].GET_SCHEMA()
    print(name, [x.id for x in schema.inputs][-1], [x.display_name for x in schema.outputs])
core = [{"type": "directional", "color": "#ffffff", "intensity": 3.0, "position": {"x": 2.0, "y": 0.0, "z": 0.0},
         "target": {"x": 0.0, "y": 0.0, "z": 0.0}}]
given = {"light_info": core} if hasattr(io, "Load3DLightInfo") else {}
rigs, *info = node("Light", type="point", x=0.25, **given)
print([type(light).__name__ for light in rigs[0]], [light["type"] for light in info[0]] if info else "no info")

normals = torch.tensor([1.0, 0.5, 0.5]).expand(1, 8, 8, 3)  # everything faces the right
[gbuffer] = node("MakeGBuffer", image=torch.full((1, 8, 8, 3), 0.5), normals=normals, shading=torch.ones(1, 8, 8, 3))
look = {"ambient": 0.0, "specular": 0.0, "shadow": 0.0, "occlusion": 0.0}
lit = node("Relight", gbuffer=gbuffer, **given, **look)[0].mean().item()
dark = node("Relight", gbuffer=gbuffer, **look)[0].mean().item()
print("lit", lit > dark + 0.3 if given else lit == dark)
"""


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def test_without_lights_of_core_there_is_no_socket(run_in_comfy, server, tmp_path):
    code = "from comfy_api.latest import io\nprint(hasattr(io, 'Load3DLightInfo'))\n"
    has, light, relight, lights, lit = run_in_comfy(
        code + INSIDE + LIGHT_INFO, *folders(server, tmp_path)
    ).splitlines()
    if has == "True":
        pytest.skip("this ComfyUI has them")
    assert light == "Light mask ['lights']" and not relight.startswith("Relight light_info")
    assert lights == "['Point'] no info" and lit == "lit True"


def test_lights_of_core_come_in_and_go_out(run_in_comfy, server, tmp_path):
    """As in a ComfyUI that has the type, whose values are those of comfy_extras/nodes_light_3d.py."""
    light, relight, lights, lit = run_in_comfy(LATER + INSIDE + LIGHT_INFO, *folders(server, tmp_path)).splitlines()
    assert light == "Light light_info ['lights', 'light_info']" and relight.startswith("Relight light_info")
    assert lights == "['Sun', 'Point'] ['directional', 'point']" and lit == "lit True"


def folders(server, tmp_path) -> tuple[Path, Path, Path]:
    return server.base, server.pack, tmp_path


@pytest.fixture(scope="module")
def photo_graph(server) -> Graph:
    """Return a photo, and the same with constant shading, for tints."""
    file = Client(server.url).upload_image("tint.png", np.full((16, 16, 3), 120, np.uint8))
    return {
        "photo": node("LoadImage", image=file),
        "gbuffer": node(
            "IntrinsicLora_MakeGBuffer", image=["photo", 0], shading=["photo", 0], normals_frame="opengl",
            depth_kind="near-white", albedo_encoding="srgb", shading_encoding="srgb", near=1.0, far=4.0, fov=45.0,
        ),
        "save": node("SaveImage", images=["edit", 0], filename_prefix="tint"),
    }  # fmt: skip


def test_a_colour_is_picked_or_wired_as_text(client, photo_graph):
    """A text wired to the colour, as in graphs made before there was a picker, gives what the widget gives."""
    settings = {"gbuffer": ["gbuffer", 0], "contrast": 1.0, "soften": 0.0, "flatten": 0.0}
    wired = {"text": node("PrimitiveString", value="#ff8040")}
    typed = photo_graph | {"edit": node("IntrinsicLora_EditShading", tint="#ff8040", **settings)}
    linked = photo_graph | wired | {"edit": node("IntrinsicLora_EditShading", tint=["text", 0], **settings)}
    pictures = [client.fetch_image(client.queue(graph).files("save")[0]) for graph in (typed, linked)]
    assert (pictures[0] == pictures[1]).all()
    red, green, blue = pictures[0][8, 8].astype(int)
    assert red > green > blue


def test_a_colour_has_a_picker_where_there_is_one(client, run_in_comfy):
    has = run_in_comfy("from comfy_api.latest import io\nprint(hasattr(io, 'Color'))").strip() == "True"
    for name, field in (("EditShading", "tint"), ("Light", "color")):
        kind, options = client.object_info(f"IntrinsicLora_{name}")["input"]["required"][field]
        assert kind == ("COLOR,STRING" if has else "STRING")
        assert options.get("widgetType") == ("COLOR" if has else None) and not options.get("socketless")


def test_core_reads_the_geometry_that_we_give(client, photo_graph):
    """Core's own node finds the field of view; it is absent from 0.3.64."""
    if "MoGeGeometryToFOV" not in client.object_info():
        pytest.skip("this ComfyUI has no MoGe nodes")
    gbuffer = {**photo_graph["gbuffer"], "inputs": photo_graph["gbuffer"]["inputs"] | {"depth": ["photo", 0]}}
    gbuffer["inputs"] |= {"normals": ["photo", 0], "normals_frame": "opengl"}
    graph = {
        "photo": photo_graph["photo"],
        "gbuffer": gbuffer,
        "geometry": node("IntrinsicLora_Geometry", gbuffer=["gbuffer", 0], near=0.0, far=0.0, fov=0.0),
        "fov": node("MoGeGeometryToFOV", moge_geometry=["geometry", 0], axis="horizontal", unit="degrees"),
        "shown": node("PreviewAny", source=["fov", 0]),
    }
    (text,) = client.queue(graph).outputs["shown"]["text"]
    assert float(text) == pytest.approx(45.0, abs=1e-3)
