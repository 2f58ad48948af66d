"""How the weights that ship with the package were made; no stage runs them."""
