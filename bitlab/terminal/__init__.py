"""What a program needs at a terminal: options from dataclasses, Ctrl-C, progress, tables of text."""
