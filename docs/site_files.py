"""Files outside docs/ that the site shows, and links between them: on GitHub and on the site the same text works."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "models/tomato/README.md",
    "weights/README.md",
    "deploy/mosquitto.conf",
    "deploy/watch.toml",
)


def on_files(files, config):
    """Adds the README as the first page, and the files that pages link to."""
    for source, target in (("README.md", "index.md"), *((name, name) for name in OUTSIDE)):
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links of the repository into links of the site."""
    markdown = markdown.replace("](../README.md", "](index.md")
    markdown = re.sub(r"\]\(\.\./((?:models|deploy|weights)/)", r"](\1", markdown)
    return re.sub(r"(\]\(|src=\")(?:\.\./\.\./)?docs/", _below(page.file.src_uri), markdown)


def _below(page):
    up = "../" * page.count("/")
    return lambda match: match[1] + up
