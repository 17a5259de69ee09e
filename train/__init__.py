"""The trainer: scenes, data, recipes and evaluation."""
