"""What Veil's programs share. Imports no program."""

__version__ = "0.1.0"
