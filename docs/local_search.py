"""Excerpts in the results of a search also where the site is read from files.

Sphinx fetches each page that it has found, to show where. A browser refuses that to a page which is
a file itself. So the page of the search brings the text of all others along, for this case alone.
"""

import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

SCRIPT = "search_pages.js"
FETCH = """
if (location.protocol === "file:") {
  window.fetch = async (url) => {
    const name = url.replace(document.documentElement.dataset.content_root, "");
    const page = SEARCH_PAGES[name.replace(/\\.html$/, "")] ?? "";
    return { text: () => `<div role="main">${page}</div>` };
  };
}
"""
bodies: dict[str, str] = {}


def page_context(
    app: Sphinx, page: str, template: str, context: dict[str, Any], *about: Any
) -> None:
    """Remembers what is on each page, and has the page of the search load it."""
    if page == "search":
        app.add_js_file(SCRIPT)
    elif page in app.env.found_docs:
        bodies[page] = context["body"]


def build_finished(app: Sphinx, error: Exception | None) -> None:
    """Writes down what was on all pages."""
    if app.builder.format == "html" and error is None:
        text = f"const SEARCH_PAGES = {json.dumps(bodies)};\n{FETCH}"
        (Path(app.outdir) / "_static" / SCRIPT).write_text(text)


def setup(app: Sphinx) -> None:
    """Hooks both into the build."""
    app.connect("html-page-context", page_context)
    app.connect("build-finished", build_finished)
