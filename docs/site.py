"""What turns pages that are read as plain Markdown into pages of the site.

On a code forge a page links files and names functions in code; on the site the same page links
other pages and entries of the API reference.
"""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.intersphinx import InventoryAdapter
from sphinx.transforms.post_transforms import SphinxPostTransform

TOCTREE = re.compile(r"^<!-- toctree\n(.*?)^-->$", re.DOTALL | re.MULTILINE)
NOTEBOOK = re.compile(r"\]\((?:\.\./)+notebooks/(\w+)\.ipynb(?=[)#])")
IMAGE = re.compile(r'src="(?:\.\./)+notebooks/images/')
SOURCE = re.compile(r"\]\((?:\.\./)+msvag_optax/_?([\w/]+?)(?:\.py)?\)")
# `mo.chain` and `mo.chain(a, b)`, but not `mo.chain(f(a), b)`, which is about more than `chain`.
NAME = re.compile(r"([A-Za-z_][\w.]*)(\([^()]*\))?")
ARGUMENTS = {"bias_correction"}  # of `adamw` and `amsgrad`, rather than the function
ABBREVIATIONS = {"mo.": "msvag_optax.", "jnp.": "jax.numpy."}
# Where optax documents what it also exports at its top.
ELSEWHERE = {"optax.tree.": "optax.tree_utils.tree_", "optax.": "optax.schedules."}


def source_read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turns comments into tables of contents, and links to files into links to pages."""
    if app.env.doc2path(docname).suffix == ".md":
        text = TOCTREE.sub(r"```{toctree}\n:hidden:\n\n\1```", source[0])
        text = NOTEBOOK.sub(r"](/notebooks/\1.ipynb", text)
        text = IMAGE.sub('src="/notebooks/images/', text)
        source[0] = SOURCE.sub(lambda m: f"](/api/{m[1].replace('/', '.')}.rst)", text)


class LinkedCode(SphinxPostTransform):
    """Links code that is the name of something to its entry, here or in jax's or optax's pages."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        """Wraps each such piece of code in a reference."""
        inventory = InventoryAdapter(self.env).main_inventory
        known = {name for kind in inventory.values() for name in kind}
        known |= {*self.env.domains.python_domain.objects} - {"msvag_optax"}
        for code in list(self.document.findall(nodes.literal)):
            linked = isinstance(code.parent, nodes.reference | addnodes.pending_xref | nodes.title)
            target = next((name for name in self.names(code.astext()) if name in known), None)
            if target and not linked:
                options = {"refdomain": "py", "reftype": "obj", "refexplicit": True}
                link = addnodes.pending_xref(reftarget=target, refdoc=self.env.docname, **options)
                code.replace_self(link)
                link += code

    def names(self, code: str) -> list[str]:
        """The full names that it may stand for."""
        match = NAME.fullmatch(code)
        if not match or (code in ARGUMENTS and self.env.docname != "api"):
            return []
        name = match[1]
        # On a page, a single word such as `momentum` may be the name of anything.
        if not (self.env.docname.startswith("api") or re.search("[A-Z_.]", name)):
            return []
        for short, full in ABBREVIATIONS.items():
            name = re.sub(rf"^{re.escape(short)}", full, name)
        others = [full + name[len(k) :] for k, full in ELSEWHERE.items() if name.startswith(k)]
        here = self.env.docname.removeprefix("api/")  # a part of the demo, perhaps
        homes = ("", "msvag_optax.", f"msvag_optax.{here}.", "msvag_optax.problems.")
        return [*(home + name for home in homes), *others]


def process_signature(app: Sphinx, *about: Any) -> tuple[str, str] | None:
    """Leaves out what a function that is a default looks like in memory."""
    *_, signature, returns = about
    if "=<function " not in (signature or ""):
        return None
    return re.sub("=<function .+?>(?=[,)])", "=...", signature), returns


def setup(app: Sphinx) -> None:
    """Hooks all three into the build."""
    app.connect("autodoc-process-signature", process_signature)
    app.connect("source-read", source_read)
    app.add_post_transform(LinkedCode)
