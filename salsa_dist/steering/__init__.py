"""The method: vectors added at the sites of a frozen model. Imports torch and nothing else of ours
but the error class."""
