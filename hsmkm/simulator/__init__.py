"""A virtual meter with software keys; it knows the standard, but neither a token nor the steps."""
