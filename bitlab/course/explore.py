"""`explore`: a figure, with controls where somebody can use them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from IPython.display import HTML, Pretty, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bitlab.course import plots
from bitlab.course.lab import headless
from bitlab.errors import BitlabError

# What people type: nothing, far too much, and what is no word (an emoji, half of one, mathtext, markup).
ODD_TEXTS = ("", "not " * 600, "\U0001f3ac\ud83d $x_$ <b>& \\frac{")

# JupyterLab's shortcuts would take the arrow keys from a dropdown, and letters too: not from what has this attribute.
NO_SHORTCUTS = """<script>
    document.currentScript.closest(".jp-OutputArea")?.addEventListener("focusin", event =>
        event.target.setAttribute("data-lm-suppress-shortcuts", ""));
</script>"""


def explore(draw: Callable, **controls) -> None:
    """Draw a figure at its default values, and add live controls to it unless the run is headless.

    For instance::

        def draw(alpha, signed):
            ...
            return ax                                   # axes, a figure, HTML(...), or text

        explore(draw, alpha=(0.1, 2.0, 0.1, 1.0), signed=True)

    The figure at its default values is an ordinary output: it is what a page without a kernel shows, and a
    `draw` that fails there fails the cell. Live controls replace that output in place; if one of their calls
    raises, the error stands where the figure was. Tab reaches every control, the arrow keys move it.
    Under pytest every other value is tried too, one control at a time (of sliders the ends, of text fields
    `ODD_TEXTS`): a `draw` that fails at one of them fails the cell.

    Args:
        draw: called with one keyword argument a control; returns what to show, without `plt.show()`.
        controls: `(minimum, maximum, step, default)` is a slider (of integers if all four are), a list is a
            dropdown whose first entry is the default, True or False a checkbox, a string a text field.

    Raises:
        BitlabError: for a control that is none of these; whatever `draw` raises at the default values.
    """
    known = {name: control(name, described) for name, described in controls.items()}
    values = {name: each.default for name, each in known.items()}
    picture = _drawn(draw, values)
    if headless():
        display(picture)
        if "PYTEST_VERSION" in os.environ:
            for other in ({name: value} for name, each in known.items() for value in each.others):
                tried = _drawn(draw, values | other)
                if isinstance(tried, Figure):
                    plots.picture(tried)  # what is no valid mathtext is an error only now
        return

    import ipywidgets

    fields = {name: each.field(ipywidgets, name.replace("_", " ")) for name, each in known.items()}
    display(HTML(NO_SHORTCUTS))
    display(ipywidgets.VBox(list(fields.values())))
    shown = display(picture, display_id=True)

    def redraw(_change):
        try:
            # the output is updated in place: an Output widget would leave a saved page empty
            shown.update(_drawn(draw, {name: field.value for name, field in fields.items()}))
        except Exception as error:
            shown.update(Pretty(f"{type(error).__name__}: {error}"))

    for field in fields.values():
        field.observe(redraw, names="value")


@dataclass(frozen=True)
class Control:
    """What can be moved: its first value, others that are worth a try, and the ipywidget that shows it."""

    default: object
    others: Sequence
    widget: str
    options: dict
    tip: str

    def field(self, ipywidgets, label: str):
        """The widget, described by its label."""
        look = {"description": label, "style": {"description_width": "initial"}, "tooltip": f"{label}: {self.tip}"}
        return getattr(ipywidgets, self.widget)(value=self.default, **self.options, **look)


def control(name: str, described) -> Control:
    """What `explore` makes of one of its arguments.

    Raises:
        BitlabError: if it describes no control.
    """
    match described:
        case bool():
            return Control(described, (not described,), "Checkbox", {"indent": False}, "on or off")
        case str():
            return Control(described, ODD_TEXTS, "Text", {"continuous_update": False}, "type, then Enter")
        case [first, *others] if isinstance(described, list):
            return Control(first, others, "Dropdown", {"options": described}, "choose one")
        case (Real() as low, Real() as high, Real() as step, Real() as start) if low <= start <= high and step > 0:
            widget = "IntSlider" if all(isinstance(number, int) for number in described) else "FloatSlider"
            bounds = {"min": low, "max": high, "step": step}
            return Control(start, (low, high), widget, bounds, f"{low} to {high}, arrow keys")
    raise BitlabError(
        f"{name}={described!r} describes no control: "
        f"write (minimum, maximum, step, default), a list, True or False, or a string"
    )


def _drawn(draw: Callable, values: dict):
    """What `draw` returns, ready for `display`: a figure for axes, plain text for a string.

    Half an emoji, which a browser can send and no tokenizer takes, arrives as a question mark.
    """
    texts = {name: text.encode(errors="replace").decode() for name, text in values.items() if isinstance(text, str)}
    try:
        result = draw(**values | texts)
        if result is None:
            raise BitlabError(f"{draw.__name__} returned nothing: let it return its figure or axes")
        if isinstance(result, str):
            return Pretty(result)
        return plots.figure_of(result) or result
    finally:
        plt.close("all")  # or the inline backend shows the figure a second time at the end of the cell
