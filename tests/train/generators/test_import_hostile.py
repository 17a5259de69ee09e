"""Hostile files for import-generator: each is refused with a sentence, runs nothing, and leaves nothing behind."""

import copyreg
import io
import os
import pathlib
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from intrinsic_lora.tests.support.official_stylegan import official_stylegan2, stub_modules
from intrinsic_lora.train.generators import unpickle
from intrinsic_lora.train.generators.importer import import_generator
from intrinsic_lora.train.generators.unpickle import read_untrusted
from torch import nn

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture(autouse=True)
def official_names(monkeypatch):
    torch.manual_seed(0)
    stub_modules(monkeypatch)


class Call:
    """Pickled as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.made = function, args

    def __reduce__(self):
        return self.made


def shell(marker) -> Call:
    return Call(os.system, f"touch '{marker}'")


def touch(marker) -> Call:
    """Pickle a call of a function that no list of malicious ones contains."""
    return Call(pathlib.Path.touch, pathlib.PosixPath(marker))


def with_generator(beside=None, **inside) -> bytes:
    """Build a complete generator with additional objects inside it, as attributes, or next to it."""
    generator = official_stylegan2(8)
    generator.synthesis.__dict__.update(inside)
    return pickle.dumps({"G_ema": generator, "beside": beside}, protocol=4)


def with_weight(weight) -> bytes:
    """Build a generator with an object in place of a weight."""
    generator = official_stylegan2(8)
    generator.mapping.fc1._parameters["weight"] = weight
    return pickle.dumps({"G_ema": generator}, protocol=4)


def refused(tmp_path, data: bytes, sentence: str, name: str = "g.pkl") -> None:
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        import_generator(tmp_path / name, tmp_path / "out")
    text = str(caught.value)
    assert text.startswith(str(tmp_path / name)) and "\n" not in text and len(text) < 400
    assert not marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------------- code

SHELL = rf"asks to run {os.system.__module__}.system, which no generator needs: it is hostile"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_call_as_the_whole_file(tmp_path, protocol):
    data = pickle.dumps(shell(tmp_path / "marker"), protocol=protocol)
    pickle.loads(data)  # what this would do elsewhere
    (tmp_path / "marker").unlink()
    refused(tmp_path, data, SHELL)


@pytest.mark.parametrize("where", ["beside", "attribute", "parameter", "module", "storage"])
def test_a_call_in_the_generator_or_beside_it(tmp_path, where):
    call = shell(tmp_path / "marker")
    if where == "module":
        generator = official_stylegan2(8)
        generator.mapping._modules["fc1"] = call
        data = pickle.dumps({"G_ema": generator})
    else:
        data = {
            "beside": lambda: with_generator(beside=call),
            "attribute": lambda: with_generator(margin=call),
            "parameter": lambda: with_weight(call),
            "storage": lambda: with_weight(tensor(call, 0, (24, 24), (24, 1))),
        }[where]()
    refused(tmp_path, data, SHELL)


def test_a_call_of_what_is_not_known_to_be_evil_in_the_generator(tmp_path):
    refused(tmp_path, with_generator(margin=touch(tmp_path / "marker")), "its generator contains pathlib")
    refused(tmp_path, with_weight(touch(tmp_path / "marker")), "its generator contains pathlib")


def test_a_call_of_what_is_not_known_to_be_evil_beside_the_generator(tmp_path):
    """It is irrelevant, like the discriminator's classes: it stays a name, and the generator is imported."""
    (tmp_path / "g.pkl").write_bytes(with_generator(beside=touch(tmp_path / "marker")))
    import_generator(tmp_path / "g.pkl", tmp_path / "out")
    assert not (tmp_path / "marker").exists()


def tensor(storage, offset, size, stride) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def nested(payload: bytes) -> bytes:
    """Build a generator with one weight whose storage is `payload`."""
    return with_weight(tensor(Call(torch.storage._load_from_bytes, payload), 0, (24, 24), (24, 1)))


def test_code_in_the_nested_pickle_of_a_storage(tmp_path):
    """A reader that guards only the outer pickle would execute the inner one."""
    call = shell(tmp_path / "marker")
    refused(tmp_path, nested(pickle.dumps(call)), "nested torch file that is not of the legacy format")
    for kwargs, sentence in (({}, "not of the legacy format"), (LEGACY, SHELL)):
        payload = io.BytesIO()
        torch.save(call, payload, **kwargs)
        refused(tmp_path, nested(payload.getvalue()), sentence)
    payload = io.BytesIO()
    torch.save(touch(tmp_path / "marker"), payload, **LEGACY)
    refused(tmp_path, nested(payload.getvalue()), "contains ")
    payload = io.BytesIO()
    torch.save(Call(torch.storage._load_from_bytes, payload.getvalue()), payload, **LEGACY)
    refused(tmp_path, nested(payload.getvalue()), "contains ")


def test_code_in_a_checkpoint(tmp_path):
    for kwargs in ({}, LEGACY):
        for content, sentence in (
            ({"state_dict": {"encoder.conv_in.weight": shell(tmp_path / "marker")}}, SHELL),
            (
                {"state_dict": {"encoder.conv_in.weight": touch(tmp_path / "marker")}},
                r"conv_in.weight is (pathlib|__builtin__)\.",
            ),
            ({"state_dict": touch(tmp_path / "marker")}, "neither"),
            ({"encoder.a": torch.zeros(1), "callbacks": shell(tmp_path / "marker")}, SHELL),
        ):
            stream = io.BytesIO()
            torch.save(content, stream, **kwargs)
            refused(tmp_path, stream.getvalue(), sentence)


class Stateful:
    """Its state is set by a call, or goes into its attributes: both must not happen."""

    ran = False

    def __setstate__(self, state):
        Stateful.ran = True


def test_state_is_not_set_on_foreign_objects(tmp_path):
    target = Stateful()
    target.a = 1
    state = pickle.dumps(target)
    pickle.loads(state)
    assert Stateful.ran
    Stateful.ran = False
    refused(tmp_path, with_generator(margin=target), "its generator contains an object of .*Stateful")
    assert not Stateful.ran
    # a class as the target: pickle would set an attribute of os.path for everybody
    build = b"\x80\x04cos.path\njoin\n}X\x04\x00\x00\x00evilK\x01sb."
    refused(tmp_path, build, "asks to run os.path.join")
    build = b"\x80\x04ccollections\nOrderedDict\n}X\x04\x00\x00\x00evilK\x01sb."
    refused(tmp_path, build, "neither")
    assert not hasattr(OrderedDict, "evil")


def test_extension_codes_are_refused(tmp_path):
    """Python's unpicklers resolve an extension code from a cache, bypassing `find_class`."""
    copyreg.add_extension("os", "getcwd", 240)
    try:
        refused(tmp_path, b"\x80\x02\x82\xf0)R.", "uses the opcode EXT1, which no generator needs")
    finally:
        copyreg.remove_extension("os", "getcwd", 240)


@pytest.mark.parametrize(
    ("data", "opcode"),
    [
        (b"(S'touch x'\niposix\nsystem\n.", "STRING"),
        (b"(iposix\nsystem\n.", "INST"),
        (b"\x80\x02(cbuiltins\nlist\no.", "OBJ"),
        (b"Psomething\n.", "PERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"L1234567890L\n.", "LONG"),
    ],
)
def test_opcodes_that_no_generator_needs(tmp_path, data, opcode):
    refused(tmp_path, data, f"uses the opcode {opcode}, which no generator needs")


def test_tensorflow_pickles_name_the_way(tmp_path):
    refused(tmp_path, b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81.", r"TensorFlow .*legacy\.py.*--dest=NEW\.pkl")


def test_names_do_not_steer_the_terminal(tmp_path):
    name = "\x1b[2J\r" + "x" * 10_000 + "\n"
    generator = official_stylegan2(8)
    generator.mapping.register_buffer(name, torch.zeros(1))
    refused(tmp_path, pickle.dumps({"G_ema": generator}), r"\?\[2J\?xxx")
    names = b"\x80\x04" + b"".join(b"X" + struct.pack("<I", 5) + text for text in (b"a\x1b[2J", b"b\ncde")) + b"\x93."
    refused(tmp_path, names, "has an invalid name of a function")


# ---------------------------------------------------------------------- data


def storage(values: torch.Tensor) -> Call:
    """As a pickled tensor refers to its storage."""
    _, args = values.__reduce_ex__(4)
    function, args = args[0].__reduce__()
    return Call(function, *args)


def test_tensors_beyond_their_storage(tmp_path):
    data = storage(torch.zeros(100))
    for offset, size, stride in (
        (0, (24, 24), (24, 1)),  # more elements than there are
        (50, (51,), (1,)),
        (0, (2,), (100,)),
        (0, (2**40, 2**40), (0, 0)),  # expanded: one element as many
        (0, (24, 24), (0, 0)),
    ):
        refused(tmp_path, with_weight(tensor(data, offset, size, stride)), "a tensor of size .* larger than its data")
    for offset, size, stride in ((-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,)), (0, (2.0,), (1,))):
        refused(tmp_path, with_weight(tensor(data, offset, size, stride)), "a tensor with a wrong size")


def array_pickle(shape, dtype: bytes | None, data) -> Call:
    """numpy's own pickle of an array, with another state."""

    class Fake:
        def __reduce__(self):
            reconstruct, args, _ = np.zeros(1).__reduce__()
            return reconstruct, args, (1, shape, np.dtype(dtype), False, data)

    return Fake()


def test_numpy_arrays_of_objects_and_of_wrong_size(tmp_path):
    objects = np.array([touch(tmp_path / "marker")], dtype=object)
    refused(tmp_path, with_generator(margin=objects), "contains a numpy array of objects")
    refused(tmp_path, with_weight(objects), "contains a numpy array of objects")
    for shape, dtype, data, sentence in (
        ((2**20, 2**20), "f8", b"\0" * 8, "another size than its data"),
        ((-1,), "f8", b"\0" * 8, "another size than its data"),
        ((1,), ">f8", b"\0" * 8, "foreign byte order"),
        ((1,), "c16", b"\0" * 16, "another type than numbers"),
        ((1,), "S8", b"\0" * 8, "another type than numbers"),
    ):
        refused(tmp_path, with_generator(margin=array_pickle(shape, dtype, data)), sentence)


def test_numbers_that_are_none_of_a_weight(tmp_path):
    refused(tmp_path, with_weight(torch.zeros(24, 24, dtype=torch.int64)), "fc1.weight is not a tensor of real")
    refused(tmp_path, with_weight("text"), "fc1.weight is not a tensor of real")


# ---------------------------------------------------------------------- bombs


def test_claims_of_length_take_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for claim in (
        b"\x8e" + struct.pack("<Q", 2**40),  # BINBYTES8
        b"\x8d" + struct.pack("<Q", 2**40),  # BINUNICODE8
        b"B" + struct.pack("<I", 2**32 - 1),
        b"\x8b" + struct.pack("<i", 2**31 - 1),  # LONG4
        b"\x96" + struct.pack("<Q", 2**40),  # BYTEARRAY8
        b"\x95" + struct.pack("<Q", 2**40) + b"N",  # FRAME
        b"Nr" + struct.pack("<I", 2**32 - 1),  # a memo of four thousand million places
    ):
        (tmp_path / "g.pkl").write_bytes(b"\x80\x04" + claim + b"abc.")
        with pytest.raises(ValueError, match=r"damaged|needs"):
            import_generator(tmp_path / "g.pkl", tmp_path / "out")
    bytearrays = pickle.dumps({"G_ema": Call(bytearray, 10**11)})
    (tmp_path / "g.pkl").unlink()
    refused(tmp_path, bytearrays, "contains builtins.bytearray")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_a_long_integer(tmp_path):
    data = b"\x80\x02\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b"."
    refused(tmp_path, data, "an integer of more than 32 bytes")


def test_storages_that_claim_more_than_they_have(tmp_path):
    typed = storage(torch.zeros(100)).made[1][0]  # a legacy file in a storage
    for old, new in ((b"Kd", b"J" + struct.pack("<i", 2**30)), (struct.pack("<q", 100), struct.pack("<q", 2**40))):
        assert old in typed
        refused(tmp_path, nested(typed.replace(old, new)), "claims more data|elements, but it has")


def test_zip_files_that_are_not_what_they_say(tmp_path):
    def rezipped(compression: int, change=None) -> bytes:
        source, target = io.BytesIO(), io.BytesIO()
        torch.save({"encoder.conv_in.weight": torch.zeros(10_000)}, source)
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, change(name, data) if change else data)
        return target.getvalue()

    refused(tmp_path, rezipped(zipfile.ZIP_DEFLATED), "is a compressed zip")
    cut = rezipped(zipfile.ZIP_STORED, lambda name, data: data[:-4] if name.endswith("data/0") else data)
    refused(tmp_path, cut, "a storage has 10000 elements, but it has 9999")
    renamed = rezipped(zipfile.ZIP_STORED).replace(b"data.pkl", b"data.txt")
    refused(tmp_path, renamed, "without a data.pkl")
    flipped = bytearray(rezipped(zipfile.ZIP_STORED))
    flipped[len(flipped) // 2] ^= 1
    refused(tmp_path, bytes(flipped), "Bad CRC|damaged")


def test_nesting_and_doubling(tmp_path):
    """A million levels do not overflow a stack; a list of itself and lists that double terminate."""
    deep = b"\x80\x04" + b"]" + b"\x85" * 60_000
    refused(tmp_path, deep + b".", "neither")
    refused(tmp_path, b"\x80\x04}" + deep[2:] + b"Ns.", "neither")  # as a key, whose hash would recurse
    refused(tmp_path, b"\x80\x04cnumpy\ndtype\n" + deep[2:] + b"\x85R.", "neither")
    doubling: list = []
    for _ in range(100):
        doubling = [doubling, doubling]
    doubling.append(doubling)
    (tmp_path / "g.pkl").write_bytes(with_generator(margin=doubling))
    import_generator(tmp_path / "g.pkl", tmp_path / "out")


def test_modules_in_circles(tmp_path):
    reconstruct = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
    children: dict = {}
    layer = Call(reconstruct, {"class_name": "MappingNetwork", "state": {"_modules": children}})
    children |= {name: layer for name in "abcdefghij"}  # ten branches at every level, for ever
    top = Call(reconstruct, {"class_name": "Generator", "state": {"_modules": children}})
    refused(tmp_path, pickle.dumps({"G_ema": top}), "nested more deeply than any generator")


def test_one_tensor_as_many_weights(tmp_path, monkeypatch):
    """Small in the file, large in the generator: every use counts."""
    generator = official_stylegan2(8)
    shared = nn.Parameter(torch.zeros(50_000))
    for i in range(100):
        generator.mapping.register_parameter(f"more{i}", shared)
    data = pickle.dumps({"G_ema": generator})
    (tmp_path / "g.pkl").write_bytes(data)
    assert len(data) < 1_000_000
    with pytest.raises(ValueError, match="its tensors take more than 2,000,000 bytes"):
        import_generator(tmp_path / "g.pkl", tmp_path / "out", max_bytes=2_000_000)
    assert not (tmp_path / "out").exists()


def test_sizes_that_only_the_arguments_claim(tmp_path):
    generator = official_stylegan2(8)
    generator.synthesis.add_module(f"b{2**30}", generator.synthesis.b8)
    refused(tmp_path, pickle.dumps({"G_ema": generator}), "more than 4096 pixels")
    generator = official_stylegan2(8)
    generator.z_dim = 2**30
    refused(tmp_path, pickle.dumps({"G_ema": generator}), "fc0.weight has the shape")


def test_limits_on_size_and_steps(tmp_path, monkeypatch):
    (tmp_path / "g.pkl").write_bytes(with_generator())
    with pytest.raises(ValueError, match=r"has [\d,]+ bytes; a generator has at most 1,000"):
        import_generator(tmp_path / "g.pkl", tmp_path / "out", max_bytes=1000)
    monkeypatch.setattr(unpickle, "MAX_STEPS", 100)
    refused(tmp_path, with_generator(), "takes more than 100 steps")


def test_damaged_files_are_refused(tmp_path):
    """A file cut or changed anywhere gives one sentence or is still readable; nothing else happens."""
    whole = with_generator(beside=[1.5, "a", {"b": np.arange(3)}])
    rng, read = random.Random(0), 0
    for i in range(120):
        data = bytearray(whole[: rng.randrange(len(whole))] if i % 3 == 0 else whole)
        for _ in range(rng.randrange(8)):
            data[rng.randrange(len(data))] = rng.randrange(256) if data else 0
        (tmp_path / "g.pkl").write_bytes(data)
        try:
            read_untrusted(tmp_path / "g.pkl")
            read += 1
        except ValueError as error:
            assert str(error).startswith(str(tmp_path / "g.pkl"))
    assert read < 115
    assert [path.name for path in tmp_path.iterdir()] == ["g.pkl"]


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        import_generator(tmp_path / "g.pkl", tmp_path / "out")
    (tmp_path / "g.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes"):
        import_generator(tmp_path / "g.pkl", tmp_path / "out")
