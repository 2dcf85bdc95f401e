"""Run salsa-dist on Slurm nodes, on this machine, or in this process: `salsa-dist launch`, by file.

    python launchers/slurm.py --nodes 4                      the demo's training on four nodes
    python launchers/slurm.py --nodes 4 --dry-run            print its sbatch script, submit nothing
    python launchers/slurm.py --cluster local --tasks-per-node 2 training.steps=20
    python launchers/slurm.py sweep demo/sweep.yaml --nodes 4       a grid of adapters

The code is in salsa_dist/launch/.
"""

import sys

from salsa_dist.launch.command import main

if __name__ == "__main__":
    sys.exit(main())
