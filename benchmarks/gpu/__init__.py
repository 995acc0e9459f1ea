"""What a GPU shows: that the trainer is right there, how fast and how lean it is, and what a plan should count with."""
