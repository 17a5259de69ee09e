"""Project files: links, versions, packages and the commands that workflows and docs name exist."""

import re
import tomllib

import intrinsic_lora
import pytest
import yaml

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGES = ("*.md", "docs/*.md", "assets/embedded/*.md", "comfy_nodes/web/docs/**/*.md")


def anchors(text: str) -> set[str]:
    """Return GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_link_within_the_repository_leads_somewhere(root):
    pages = [page for pattern in PAGES for page in root.glob(pattern)]
    assert len(pages) > 10
    broken, followed = [], 0
    for page in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            followed += 1
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            found = file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))
            broken += [] if found else [f"{page.relative_to(root)}: {target}"]
    assert broken == []
    assert followed > 30


def test_readme_is_short(root):
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_one_version(root):
    version = intrinsic_lora.__version__
    assert yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    assert f"## [{version}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_packed(root):
    setuptools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = set(setuptools["packages"])
    top = [folder for folder in root.iterdir() if (folder / "__init__.py").is_file()]
    inner = {file.parent for folder in top for file in folder.rglob("__init__.py")}
    folders = {".".join(("intrinsic_lora", *folder.relative_to(root).parts)) for folder in inner}
    assert packed == {"intrinsic_lora"} | folders - {"intrinsic_lora.tests"}


def test_workflows_run_targets_of_the_makefile(root):
    """What CI runs can be run here: each step is an action or one make target."""
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.M))
    made = []
    for workflow in (root / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
        for job in jobs.values():
            suites = job.get("strategy", {}).get("matrix", {}).get("suite", [""])
            runs = [step["run"] for step in job["steps"] if "run" in step]
            for run in (run.replace("${{ matrix.suite }}", suite) for run in runs for suite in suites):
                if run.startswith("make "):
                    made.append(run.split()[1])
                else:
                    assert run.startswith("test -f "), run
    assert {"lint", "test", "test-isa", "demo", "test-comfy", "test-comfy-ui", "dist"} <= set(made) <= targets


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_pictures_for_the_registry_exist(root, name):
    comfy = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    assert (root / comfy[name.capitalize()].partition("/main/")[2]).is_file()
    assert all((root / folder).is_dir() for folder in comfy["Includes"])
