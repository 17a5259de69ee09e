"""Recipes that train a small generator of each family on procedural scenes."""
