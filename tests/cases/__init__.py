"""What the ops are tested on, a module a family: inputs, options and oracles, the same for every implementation."""
