"""What each family of models is: its config, its tensors, its sizes. One file a family; read without torch."""
