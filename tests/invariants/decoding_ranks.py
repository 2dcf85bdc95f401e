"""One of two ranks that train under several placements and decode in between; see
test_decoding_in_training.py.

    torchrun --nproc_per_node 2 decoding_ranks.py CONFIG...
"""

import sys

from salsa_dist import load_config, train

if __name__ == "__main__":
    for config in sys.argv[1:]:
        assert train(load_config(config)).finished
