"""Where the frozen weights live, and everything that talks to DeepSpeed or to process groups."""
