"""YATT: an RLHF trainer with parallel controllers and placement that follows the load."""

__version__ = "0.1.0"
