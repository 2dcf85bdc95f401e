"""What runs decoded, scored and set side by side: pages to read, JSON, CSV and LaTeX."""
