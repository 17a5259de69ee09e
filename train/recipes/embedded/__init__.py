"""The recipe of the embedded default model, one command per stage; `all` runs them in order."""
