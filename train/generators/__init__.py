"""Networks of the paper's other generators, and the import of their official files."""
