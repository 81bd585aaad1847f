"""Building blocks of reports: numbers, text, SVG, thumbnails."""
