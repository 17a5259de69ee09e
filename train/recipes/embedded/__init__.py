"""The recipe of the embedded default model, one command a stage; `all` runs them in order."""
