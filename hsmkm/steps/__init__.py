"""The seven steps from a production order to a reading under renewed keys; each has the file of its name."""
