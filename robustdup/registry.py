"""The former place of `robustdup.plugins`, kept for model files and scripts of the first edition."""

from robustdup.plugins import Registry, load_plugins

__all__ = ["Registry", "load_plugins"]
