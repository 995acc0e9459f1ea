"""The trainer of transformers' own modules, sharded with FSDP2, behind `yatt.training.model.Backend`."""
