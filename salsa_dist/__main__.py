"""`python -m salsa_dist`, and what `torchrun -m` and `accelerate launch -m` start."""

from salsa_dist.cli import main

main()
