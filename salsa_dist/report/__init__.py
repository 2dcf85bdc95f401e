"""Scores and comparisons of runs, as HTML, JSON, CSV and LaTeX."""
