"""Training: the loop in loop.py, one step in job.py, Adam in optimizer.py, checkpoints in state.py."""
