"""An adapter inside a base's own weights, so that engines that know no steering can serve it."""
