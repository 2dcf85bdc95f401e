"""Where the frozen weights are stored; everything that uses DeepSpeed or process groups."""
