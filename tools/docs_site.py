"""Hook of mkdocs: the pages of the docs site that are not files in docs/.

    README.md, CONTRIBUTING.md …    pages under the names in PAGES
    examples/                       a page per example: a script as it is, a notebook cell by cell
    salsa_dist/config/              config.md: a table per section
    the command-line apps           commands.md: the --help of each command
    salsa_dist/                     api.md: the docstrings of what API names

A link to another file of the repository leads to its page, or else to a copy of the file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

# Files of the repository, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "ds_configs/README.md": "ds_configs.md",
    "examples/plain_salsa.py": "examples/plain_salsa.md",
    "examples/first_steps.ipynb": "examples/first_steps.md",
    "salsa_dist/config/schema.py": "config.md",
}

# What users and authors of a method, a family or a recipe import; a heading, then names.
API = {
    "Use": [
        "salsa_dist.load_speech_llm",
        "salsa_dist.transcribe",
        "salsa_dist.transcribe_each",
        "salsa_dist.SteeringVectors",
        "salsa_dist.load_config",
        "salsa_dist.train",
        "salsa_dist.evaluate",
        "salsa_dist.UserError",
    ],
    "Steering": [
        "salsa_dist.steering.rules.rule",
        "salsa_dist.steering.rules.registry",
        "salsa_dist.steering.rules.salsa",
        "salsa_dist.steering.rules.add",
        "salsa_dist.steering.rules.gain",
        "salsa_dist.steering.sites",
        "salsa_dist.steering.bank.Bank",
        "salsa_dist.steering.bank.AdapterSpec",
    ],
    "A model family": [
        "salsa_dist.speech_llms.family",
        "salsa_dist.speech_llms.batch",
    ],
    "Data and recipes": [
        "salsa_dist.corpus.recipes",
        "salsa_dist.corpus.utterance",
        "salsa_dist.corpus.writer",
        "salsa_dist.data.clip",
        "salsa_dist.data.index",
    ],
    "A method": ["salsa_dist.methods.base"],
    "Error rates": ["salsa_dist.metrics.error_rates", "salsa_dist.metrics.normalise"],
}

CONFIG_INTRODUCTION = """# Config

One YAML file describes a run. On a command line, `KEY=VALUE` replaces a key, with dots between
sections: `training.steps=200`.

- *default*: a dash marks a required key.
- *decides*: the results that depend on the key. They are the vectors, the transcripts, or which
  transcripts are made (coverage). A change of any other key repeats no work."""

_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {"commands.md": commands_page(), "api.md": api_page()}
    for source, page in PAGES.items():
        path = ROOT / source
        if path.suffix == ".md":
            made[page] = path.read_text(encoding="utf-8")
        elif path.suffix == ".ipynb":
            made[page] = notebook_page(path)
        elif page == "config.md":
            made[page] = config_page()
        else:
            made[page] = script_page(path)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository, as links within the site."""
    here = page.file.src_uri
    source = next((s for s, p in PAGES.items() if p == here), f"docs/{here}")

    def within(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        path = ROOT / target
        if path.is_dir():
            target = f"{target}/README.md"
        place = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            if not (ROOT / target).is_file():
                raise PluginError(f"{source}: the link to {found[1]} leads nowhere")
            place = f"files/{target}"
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / target)))
        return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{found[2] or ''})"

    return _LINK.sub(within, markdown)


def script_page(path: Path) -> str:
    """A script as it is."""
    name = path.relative_to(ROOT)
    return f"# {name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"


def notebook_page(path: Path) -> str:
    """The cells of a notebook: text as it is, code in a block."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """A table per section of the config."""
    from salsa_dist.config import Config

    return "\n".join([CONFIG_INTRODUCTION, *_section(Config, "")]) + "\n"


def _section(model: Any, name: str) -> Iterator[str]:
    from pydantic_core import PydanticUndefined

    from salsa_dist.config.annotations import sections_below
    from salsa_dist.config.decides import decided_by

    if name:
        yield from ("", f"## {name}")
    if name and model.__doc__:
        yield from ("", _paragraph(model.__doc__))
    plain = {k: f for k, f in model.model_fields.items() if not sections_below(f.annotation)}
    if plain:
        yield from ("", "| key | type | default | meaning | decides |", "|---|---|---|---|---|")
    for key, field in plain.items():
        default = field.get_default(call_default_factory=True)
        shown = "—" if default is PydanticUndefined else f"`{json.dumps(default, default=str)}`"
        decides = ", ".join(sorted(decided_by(field).kinds - {"place"}))
        cells = [f"`{key}`", f"`{_type(field.annotation)}`", shown, field.description or "", decides]
        yield "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
    for key, field in model.model_fields.items():
        below = sections_below(field.annotation)
        for section in below:
            kind = section.model_fields.get("kind")
            one_of = f", {get_args(kind.annotation)[0]}" if kind is not None and len(below) > 1 else ""
            yield from _section(section, f"{name}.{key}".lstrip(".") + one_of)


def _type(annotation: Any) -> str:
    """A type as it is written in YAML; a table has no room for `|`."""
    from salsa_dist.config.annotations import written

    return written(annotation).replace(" | ", " or ").replace("None", "null")


def _paragraph(docstring: str) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join(docstring.strip().split("\n\n")[0].split())


def commands_page() -> str:
    """The --help of each command."""
    import typer

    from salsa_dist.cli import app
    from salsa_dist.launch.command import launch
    from salsa_dist.launch.options import command_line

    own = command_line(launch)
    own.rich_markup_mode = None
    lines = ["# Commands", "", *_helps(typer.main.get_command(app), "salsa-dist", None)]
    return "\n".join([*lines, *_helps(own, "salsa-dist launch", None)]) + "\n"


def _helps(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name.split()[-1], parent=parent)
    context.terminal_width = context.max_content_width = 100
    if parent is None:
        context.info_name = name
    children = getattr(command, "commands", {})
    yield from (f"## {name}", "", "```text", command.get_help(context).rstrip(), "```", "")
    for child, one in children.items():
        yield from _helps(one, f"{name} {child}", context)


def api_page() -> str:
    """Docstrings, by mkdocstrings."""
    lines = ["# Python", "", "Shapes are in parentheses, such as `(batch, frames, hidden)`."]
    for heading, names in API.items():
        lines += ["", f"## {heading}"]
        for name in names:
            lines += ["", f"::: {name}"]
    return "\n".join(lines) + "\n"
