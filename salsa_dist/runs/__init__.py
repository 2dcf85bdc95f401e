"""Commands about many runs: finding them, their state on Slurm or here, their cost."""
