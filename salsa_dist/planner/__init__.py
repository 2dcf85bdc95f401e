"""What each placement of a base costs, on paper: no weight is read and DeepSpeed is not imported."""
