"""The method: vectors added at the sites of a frozen model. Needs only torch and our error class."""
