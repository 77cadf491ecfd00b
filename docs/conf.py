"""Settings of Sphinx. ``nox -s docs`` builds the documentation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("_ext")))

from creduse import __version__

project = "creduse"
author = "The creduse authors"
copyright = author  # noqa: A001 - Sphinx's name for it
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
    "reference",
]
exclude_patterns = ["_build"]
# In docstrings, `CoreClient` is a name to resolve, and ``subtract`` is plain code.
default_role = "py:obj"
nitpick_ignore = [
    # Type variables have no page.
    ("py:class", "creduse_core.call.T"),
    ("py:class", "creduse_core.client.T"),
    ("py:class", "creduse_journal._journal.T"),
    # The decoding of a response is private: only `CreduseProtocol` makes a `Call`.
    ("py:class", "creduse_core.decoding.Expected"),
    # A private tuple of pairs: only `Request` makes it.
    ("py:class", "creduse_core.messages.HiddenHeaders"),
]

autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]  # code hosts draw these blocks, too

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"creduse {__version__}"
html_static_path = ["_static"]
html_css_files = ["creduse.css"]
html_show_copyright = False
html_copy_source = False
