"""Families of models: their config, tensors and sizes. One file a family; read without torch."""
