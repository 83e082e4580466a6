"""Sphinx's settings for the site; `builder.py` beside it lays out the folder that they apply to."""

project = html_title = "bitlab"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # summaries are fetched, which a browser refuses from files
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
mathjax_path = "tex-svg.js"  # one file with its fonts in it
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # it does not see the glossary's anchors: see builder.broken_links
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
default_role = "code"  # docstrings put names between single backticks
