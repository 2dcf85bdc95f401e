"""The estimated cost of each placement: no weight is read and DeepSpeed is not imported."""
