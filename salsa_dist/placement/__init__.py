"""Where the frozen weights are stored. All code that uses DeepSpeed or process groups is here."""
