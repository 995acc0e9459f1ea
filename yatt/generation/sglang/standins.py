"""Importing this module puts stand-ins in place of the packages that SGLang imports and nothing calls on a CPU; it must
come before SGLang itself."""

from yatt.generation.standins import install

install(("triton", "sgl_kernel", "torchvision", "IPython", "gguf", "soundfile"))
