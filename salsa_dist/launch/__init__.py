"""`salsa-dist launch`: runs one job on Slurm nodes, on this machine or in this process."""
