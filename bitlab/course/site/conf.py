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


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings as they are written, for docutils: an indented block is literal, and |w| is no substitution."""
    literal, last = None, -1  # the indent that the block's text has; the last line that was not empty
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if literal is not None and indent <= literal:
            literal = None
        if literal is None and 0 <= last < i - 1 and lines[last].endswith(":"):
            before = len(lines[last]) - len(lines[last].lstrip())
            if indent > before:
                lines[last] += "" if lines[last].endswith("::") else ":"
                literal = before
        if literal is None:
            words = line.split("`")
            words[::2] = [word.replace("|", "\\|") for word in words[::2]]
            lines[i] = "`".join(words)
        last = i


def setup(app):
    """Called by Sphinx; before napoleon, which makes lists of "Args:"."""
    app.connect("autodoc-process-docstring", plain, priority=400)
