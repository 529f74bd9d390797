"""The documentation works as pasted: snippets, the notebook, commands, links, and the build.

Blocks marked `python` are run, page by page and in order, with a server on this machine in the place of the Hugging
Face hub. Of blocks marked `sh` the commands of swinx are run, and those of experiments and benchmarks must have the
options that they use. Blocks marked `py` and `text` are not run.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from hub_server import Hub, run
from safetensors.torch import save

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("*.ipynb"))]
COMMAND = re.compile(r"python -m (experiments\.\w+|tests\.benchmarks\.\w+)(.*)")
SHELL = re.compile(r"^```(?:sh)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("suffix", [".md", ".ipynb"])
def test_snippets_work_as_pasted(suffix: str, tmp_path: Path) -> None:
    weights = save(timm.create_model("swin_tiny_patch4_window7_224").state_dict())
    hub = Hub({})
    for tag in ("ms_in1k", "ms_in22k"):
        hub.add(f"timm/swin_tiny_patch4_window7_224.{tag}", "config.json", b'{"pretrained_cfg": {}}')
        hub.add(f"timm/swin_tiny_patch4_window7_224.{tag}", "model.safetensors", weights)
    pages = [str(page) for page in PAGES if page.suffix == suffix]
    assert pages
    with hub.serve():
        done = run("import snippets, sys; snippets.main(sys.argv[1:])", *pages, cwd=tmp_path, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    failures = json.loads(done.stdout.splitlines()[-1])
    assert failures == {}, "\n".join(failures.values())


def test_the_notebook_is_stored_without_outputs() -> None:
    for page in DOCS.glob("*.ipynb"):
        cells = [cell for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), page.name


def commands() -> dict[str, set[str]]:
    """The options that the pages give to each command of the experiments."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for block in SHELL.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    if match := COMMAND.search(part):
                        words = shlex.split(match[2], comments=True)
                        found.setdefault(match[1], set()).update(word for word in words if word.startswith("--"))
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_have_the_options_that_pages_give_them(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert {option for option in commands()[command] if not re.search(rf"{option}\b", done.stdout)} == set()


def test_links_of_pages_outside_the_build_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed: pip install -e ".[docs]"')
    # The notebook is run by the test of the snippets.
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-D", "nb_execution_mode=off"]
    done = subprocess.run([*command, str(DOCS), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<math" in (tmp_path / "dilation.html").read_text()
    for page in tmp_path.rglob("*.html"):
        assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]*', page.read_text()) == [], page.name
