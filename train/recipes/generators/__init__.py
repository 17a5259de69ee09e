"""Recipes of small generators on procedural scenes, one per family."""
