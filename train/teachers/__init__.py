"""Models that label photos. Imports nothing: the table of teachers is shown without torch."""
