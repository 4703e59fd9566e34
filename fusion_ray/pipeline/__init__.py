"""From a recipe to a run: which artifacts it asks for, where each stands, and how to make the rest."""
