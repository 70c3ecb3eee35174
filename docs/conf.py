"""How the documentation is built: offline, with every warning an error."""

import sys
from importlib import metadata
from pathlib import Path

import jax
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import api_reference, inventories, local_search, notebook_files, site

project = "msvag_optax"
author = "The msvag_optax authors"
project_copyright = f"2026, {author}"
version = release = metadata.version("msvag_optax")

extensions = [
    "myst_nb",  # pages in Markdown, and pages that are notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # no page needs a network to be readable
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"msvag_optax {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_scaled_image_link = False  # A thumbnail links to its notebook.
nitpicky = True

# A docstring's `name` is code, as in Markdown.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # a default as it is written, not what it looks like in memory
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False
napoleon_use_rtype = False

intersphinx_mapping = {
    name: (url, str(inventories.FOLDER / f"{name}.txt")) for name, url in inventories.SITES.items()
}

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

nb_execution_mode = "off"  # The notebooks are kept with their outputs.
nb_render_markdown_format = "myst"  # tables and mathematics in what a cell prints, too


def setup(app: Sphinx) -> None:
    """Writes the API reference and the notebooks before Sphinx looks for pages."""
    jax.config.update("jax_platforms", "cpu")
    api_reference.write(Path(app.srcdir) / "api")
    notebook_files.copy_to(Path(app.srcdir) / "notebooks")
    site.setup(app)
    local_search.setup(app)
