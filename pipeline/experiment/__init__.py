"""From a recipe to finished runs: recipe, rows, plan, execution."""
