"""Teachers: models that label photos. Imports nothing, so that their table can be shown without torch."""
