"""How much the service bears: `cd tests && python -m load`."""
