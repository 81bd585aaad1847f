"""Files for GitHub, Docker and citation are valid and consistent with the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

GITHUB = ROOT / ".github"
SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    ".github/dependabot.yml": "dependabot",
    ".github/workflows/ci.yml": "github-workflows",
}


def lint(tool: str, *arguments: object) -> None:
    """Run a linter that pip installed, or skip."""
    found = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run(
        [found, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def project() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", SCHEMAS)
def test_file_has_the_form_that_its_reader_expects(file: str) -> None:
    lint("check-jsonschema", "--builtin-schema", f"vendor.{SCHEMAS[file]}", file)


def test_every_yaml_file_has_a_schema() -> None:
    found = {str(path.relative_to(ROOT)) for path in GITHUB.rglob("*.yml")}
    assert found == {file for file in SCHEMAS if file.startswith(".github/")}


def test_workflow_has_no_known_weakness() -> None:
    lint("zizmor", "--offline", "--no-progress", "--persona=pedantic", ".github")


def test_workflow_runs_the_same_script_on_every_python_that_is_named() -> None:
    workflow = (GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: bash .ci/run\n" in workflow
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix is not None
    versions = re.findall(r"3\.\d+", matrix[1])
    assert versions == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project())
    assert f'requires-python = ">={versions[0]}"' in project()


def test_dockerfile_has_no_known_mistake() -> None:
    lint("hadolint", "Dockerfile")


def test_image_gets_every_file_that_its_build_copies() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.M)
        for source in line.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert copied == set(re.findall(r"^!(\S+)$", ignored, re.M))
    assert all((ROOT / source).exists() for source in copied)
    packaged = re.search(r"package-dir = {(.*)}", project())
    assert packaged is not None
    assert set(re.findall(r'= "(\w+)"', packaged[1])) <= copied


def test_image_installs_extras_that_exist_and_no_torch_by_default() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    default = re.search(r"^ARG EXTRAS=(\S+)$", dockerfile, re.M)
    assert default is not None
    extras = project().split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    for extra in default[1].split(","):
        found = re.search(rf"^{extra} = \[(.*?)\]", extras, re.M | re.S)
        assert found is not None
        assert "torch" not in found[1]
        assert "mwa-export[" not in found[1]


def test_image_runs_without_root() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    last = dockerfile.rsplit("\nFROM ", 1)[1]
    user = re.search(r"^USER (\d+)", last, re.M)
    assert user is not None
    assert int(user[1]) > 0
    assert last.index("USER") < last.index('ENTRYPOINT ["mwa-export"]')


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "tests/README.md"]
)
def test_relative_links_lead_to_files(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_make_targets_that_contributors_are_told_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in (ROOT / "CONTRIBUTING.md", GITHUB / "pull_request_template.md"):
        named = set(re.findall(r"`make ([a-z]+)`", page.read_text(encoding="utf-8")))
        assert named
        assert named <= targets
