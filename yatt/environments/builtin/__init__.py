"""Environments that come along: to be named in `environment`, or to build one's own on."""
