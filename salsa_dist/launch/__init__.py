"""One job on Slurm nodes, on this machine or in this process: what `salsa-dist launch` does."""
