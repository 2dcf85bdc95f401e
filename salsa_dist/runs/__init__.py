"""Looking after runs: finding them, how they fare on Slurm or here, what they cost."""
