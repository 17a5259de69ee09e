"""Networks of the paper's other generators, and the way from their official files to ours."""
