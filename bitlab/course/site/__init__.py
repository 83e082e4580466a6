"""The series as a static site: `python -m bitlab.course.site`."""
