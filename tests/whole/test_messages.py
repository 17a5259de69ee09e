"""Error messages are sentences, and all prose uses the field's terms: checked in the source."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from intrinsic_lora.intrinsics.files import continued

ROOT = Path(__file__).parents[2]
ROOMS = {  # the least number of messages that the walk finds
    "intrinsics": 30,
    "diffusers_pipeline": 30,
    "train/backbones": 20,
    "train/data": 40,
    "train/scoring": 10,
    "train/teachers": 15,
}
PROSE = (
    *("intrinsics", "diffusers_pipeline", "cli", "benchmarks"),
    *(f"train/{room}" for room in ("data", "generators", "recipes", "scenes", "scoring", "teachers")),
)
PRIVATE = (  # private words -> the field's terms
    (r"\bone's own\b", "custom"),
    (r"\blest\b", "so that ... does not"),
    (r"\banew\b", "again"),
    (r"\bbut once\b", "only once"),
    (r"\btwins?\b", "duplicate"),
    (r"\bstrange\b", "unknown, unexpected"),
    (r"\bgoes on\b", "resumes, continues"),
    (r"\bsaid\b", "given, reported"),
    (r"\bwho labels\b", "teacher"),
    (r"\bwhose they are\b", "their model"),
    (r"\bso many\b", "that number of"),
    (r"(?<!there )\bis no (?!longer\b|more\b|such\b)[a-z]+", "is not a"),
)
VALUE = "\0"  # stands for a formatted value, or for text that is not a literal
FSTRING_MIDDLE = getattr(tokenize, "FSTRING_MIDDLE", None)  # from Python 3.12 on; before, an f-string is a STRING
FRAGMENTS = ("not a JSON object",)  # caught where it is raised, and put in brackets in the message for users
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


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of comments and strings, docstrings among them."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, FSTRING_MIDDLE):
            yield token.start[0], " ".join(token.string.split())


def private_words(text: str) -> list[str]:
    return [f"{word.group()!r} -> {term}" for old, term in PRIVATE for word in re.finditer(old, text, re.IGNORECASE)]


@pytest.mark.parametrize("room", PROSE)
def test_prose_uses_the_terms_of_the_field(room):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in prose(path.read_text(encoding="utf-8"))
        if (words := private_words(text))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [("An intrinsic of one's own is no LoRA.", 2), ("There is no file x.", 0), ("Training resumes.", 0)],
)
def test_a_private_word_is_found(text, count):
    assert len(private_words(text)) == count


@pytest.mark.parametrize(("room", "least"), ROOMS.items())
def test_messages_are_sentences(room, least):
    messages = [
        (f"{path.relative_to(ROOT)}:{line}", message)
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, message in raised(path.read_text(encoding="utf-8"))
    ]
    assert len(messages) >= least
    assert [f"{where} {fault(m)}: {m!r}" for where, m in messages if m not in FRAGMENTS and fault(m)] == []


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
