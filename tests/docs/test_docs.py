"""README and docs: their configurations are valid, their links and paths exist, every option is described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from server.settings import read_settings
from server.settings.schema import Settings

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path of the repository in code font: has a folder of ours in front.
FOLDERS = "alignment|deploy|docs|fusion|requirements|server|tests|tools"
NAMED = re.compile(rf"`((?:{FOLDERS})/[A-Za-z0-9_./-]*)`")

named = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def configurations() -> list[Any]:
    """The YAML blocks that are configurations, which all have models."""
    found = [(page, number, block) for page in PAGES for number, block in enumerate(BLOCK.findall(text_of(page)))]
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page, number, block in found
        if "models" in yaml.safe_load(block)
    ]


@pytest.mark.parametrize("block", configurations())
def test_a_configuration_in_the_docs_is_one(block, tmp_path):
    path = tmp_path / "docs.yaml"
    path.write_text(block, encoding="utf-8")
    assert read_settings(path, {}).served


def test_configurations_are_found_in_readme_and_docs():
    assert {parameter.id.split("-")[0] for parameter in configurations()} >= {"README", "configuration", "engines"}


@named
def test_relative_links_lead_somewhere(page):
    links = [link for link in LINK.findall(text_of(page)) if not re.match(r"[a-z]+:", link)]
    missing = [link for link in links if not (page.parent / link.split("#")[0]).exists()]
    assert missing == []


@named
def test_paths_that_a_page_names_exist(page):
    assert [path for path in NAMED.findall(text_of(page)) if not (REPOSITORY / path).exists()] == []


def fields(section: type[BaseModel]) -> Iterator[str]:
    """The names of all fields of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        yield name
        for inner in sections(field.annotation):
            yield from fields(inner)


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections(part)


def test_every_field_of_a_configuration_is_described():
    described = text_of(REPOSITORY / "docs" / "configuration.md") + text_of(REPOSITORY / "docs" / "weights.md")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", described))))
    assert sorted(set(fields(Settings)) - words) == []


def test_the_readme_is_short_and_serves_and_tests_first():
    text = text_of(README)
    assert len(text.splitlines()) <= 150
    first, second = re.findall(r"^```sh\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)[:2]
    assert (first, second) == ("make serve", "make test")
