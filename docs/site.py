"""Hooks of the documentation site: add pages from outside docs/, and adapt the links to
them.

README.md is the front page. A link to a file that is not a page of the site is replaced
by its text.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_PROJECTS = sorted(ROOT.glob("projects/*/README.md"))
PAGES = {
    "README.md": "index.md",
    "docker/README.md": "images.md",
    "docker/stack/README.md": "stack.md",
    "projects/README.md": "projects.md",
    "projects/first_hour.ipynb": "projects/first_hour.md",
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "security.md",
    **{
        f"{page.parent.relative_to(ROOT)}/README.md": f"{page.parent.relative_to(ROOT)}.md"
        for page in _PROJECTS
    },
}
"""Path in the repository → path in the site."""
BOOST = {
    **dict.fromkeys(["errors.md", "results.md", "architecture.md", "contributing.md"], 0.3),
    **dict.fromkeys(["reference.md", "glossary.md", "release.md", "security.md"], 0.4),
    **dict.fromkeys(["client.md", "index.md", "guides.md", "monitor-method.md", "runbook.md"], 0.5),
    **dict.fromkeys([place for place in PAGES.values() if place.startswith("projects/")], 0.5),
    **dict.fromkeys(["changelog.md", "code_of_conduct.md", "releasing.md"], 0.15),
}
"""Page → weight in the search. Lists and background must not bury the guides."""
WORDS = yaml.safe_load((ROOT / "docs" / "search.yaml").read_text())
"""Page → words for which the search finds it, in addition to its own."""
# Badges are loaded from other servers.
BADGE = re.compile(r"^\[!\[.*\n", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:)([^)#\s]*)(#[^)\s]*)?\)")

EMPTY_TITLE = re.compile(r"<th[^>]*></th>")
EMPTY_HEAD = re.compile(r"<thead>\s*<tr>(?:\s*<th[^>]*></th>)+\s*</tr>\s*</thead>")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, and the manifests and pictures that pages link
    to.
    """
    for source, place in PAGES.items():
        content = (ROOT / source).read_text()
        if source.endswith(".ipynb"):
            content = _notebook_page(json.loads(content))
        files.append(File.generated(config, place, content=content))
    for path in sorted((ROOT / "docker").glob("*/*.yaml")):
        files.append(
            File.generated(config, path.relative_to(ROOT).as_posix(), content=path.read_text()),
        )
    for path in sorted((ROOT / "projects").glob("*/*.png")):
        files.append(
            File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)),
        )
    return files


def _notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: texts, code, and the text of the outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        texts = [output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]]
        printed = "".join(line for text in texts for line in text)
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Remove badges, and make each link point to the place of its file in the site."""
    here = page.file.src_uri
    page.meta["search"] = {"boost": BOOST.get(here, 1)}
    page.meta["tags"] = WORDS.get(here.removesuffix(".md"), "").split()
    sources = {place: source for source, place in PAGES.items()}
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def follow(match: re.Match[str]) -> str:
        text = match[1]
        target = match[2]
        anchor = match[3] or ""
        if not target:
            return match[0]
        source = posixpath.normpath(posixpath.join(folder, target))
        if source.startswith(".."):  # A page of the repository's host, such as its issues.
            return text
        place = PAGES.get(source, source.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            return text if (ROOT / source).exists() else match[0]
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(follow, BADGE.sub("", markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Remove the head of a table whose columns have no titles, because a screen reader
    would read empty titles. If only one column has no title, its cell becomes a data
    cell.
    """
    return EMPTY_TITLE.sub("<td></td>", EMPTY_HEAD.sub("", html))


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same for the page of an unknown address."""
    return on_post_page(output_content)


def on_post_page(output: str, **_: Any) -> str:
    """Give the theme's dialog a name."""
    return output.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
