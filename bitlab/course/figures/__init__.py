"""What the notebooks draw, one module a notebook: each function is one picture, with an alt text of its own numbers.

A notebook writes `from bitlab.course.figures import nb01 as figures` and `show(figures.bits(x, w))`.
"""
