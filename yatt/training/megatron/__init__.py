"""The Megatron-Core trainer, behind `yatt.training.model.Backend`."""

import warnings

from yatt.training.megatron import cpu

# Optional kernels (TransformerEngine, Apex) that are not used, and deprecations between Megatron and torch.
warnings.filterwarnings("ignore", message=".*Apex (is|are) not installed")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(megatron\.core|torch\.distributed)\.")
warnings.filterwarnings("ignore", module=r"megatron\.core\.(transformer|optimizer|tensor_parallel)\.")
# Importing any module of this package imports megatron.core, which the hook must precede.
cpu.install()
