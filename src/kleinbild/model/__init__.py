"""The networks of the family, from nano to 9B, and their weights: a model is a spec (numbers) plus weights."""
