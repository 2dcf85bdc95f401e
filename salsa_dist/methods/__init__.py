"""Steering and the methods to compare it with; one file each."""
