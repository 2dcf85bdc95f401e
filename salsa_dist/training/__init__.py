"""Training a bank: `train` is in loop.py, one step in job.py; optimizer.py, and state.py on disk."""
