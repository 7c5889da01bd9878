"""The command line: one module for each noun, results on stdout, talk on stderr."""
