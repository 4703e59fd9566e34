"""What a run will take, and what will not fit, from the recipe alone: nothing is loaded and nothing is started."""
