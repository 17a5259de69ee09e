"""Error messages are sentences: what users read when something is wrong, checked where it is raised."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from intrinsic_lora.intrinsics.files import continued

ROOT = Path(__file__).parents[2]
ROOMS = ("intrinsics", "diffusers_pipeline")
VALUE = "\0"  # stands for a formatted value, or for text that is not a literal
NOT_FOR_USERS = ("AttributeError", "NotImplementedError")


def template(node: ast.expr) -> str:
    """Return the literal text of a message, with `VALUE` in place of formatted values."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part) for part in parts)
        case _:
            return VALUE


def raised(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=kind), args=[message, *_])) if kind not in NOT_FOR_USERS:
                yield node.lineno, template(message)


def fault(message: str) -> str | None:
    begins_with_an_argument = re.match(r"[a-z]+(_[a-z]+)+\b", message)  # `batch_size must be ...`
    if not (message[:1].isupper() or message.startswith(VALUE) or begins_with_an_argument):
        return "does not begin with a capital"
    if not message.endswith((".", "?", VALUE)):
        return "has no full stop"
    if re.search(r"(?<![\w-])--[a-z]", message):
        return "names an option of the command line"
    return None


@pytest.mark.parametrize("room", ROOMS)
def test_messages_are_sentences(room):
    messages = [
        (f"{path.relative_to(ROOT)}:{line}", message)
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, message in raised(path.read_text(encoding="utf-8"))
    ]
    assert len(messages) > 30  # the walk finds them
    assert [f"{where} {fault(m)}: {m!r}" for where, m in messages if fault(m)] == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('raise ValueError("there is no file.")', "does not begin with a capital"),
        ('raise ValueError(f"There is no file {path}")', None),
        ('raise ValueError(f"There is no file {path}; look again")', "has no full stop"),
        ('raise ValueError("batch_size must be at least 1.")', None),
        ('raise ValueError("Use --loras.")', "names an option of the command line"),
        ('raise ValueError("A well-known file " "is missing.")', None),
    ],
)
def test_a_message_that_is_no_sentence_is_found(code, reason):
    assert [fault(message) for _, message in raised(code)] == [reason]


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ("The file is empty.", "the file is empty."),
        ("A TIFF must be grey.", "a TIFF must be grey."),
        ("OpenEXR could not decode it", "OpenEXR could not decode it."),
        ("TIFF is damaged.", "TIFF is damaged."),
        ("Photos/x.png is damaged.", "Photos/x.png is damaged."),
        ("did you mean 'el'?", "did you mean 'el'?"),
    ],
)
def test_a_message_continues_a_sentence(message, end):
    assert continued(message) == end
