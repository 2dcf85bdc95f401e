"""One rank of a whole run with the base cut over all ranks: `train`, then `evaluate`.

torchrun --nproc_per_node 2 sharded_run.py CONFIG
"""

import sys

from salsa_dist import evaluate, load_config, train

if __name__ == "__main__":
    config = load_config(sys.argv[1])
    train(config)
    evaluate(config)
