"""What differs from base to base: prompt, labels, row maps, audio window. One small file per family."""
