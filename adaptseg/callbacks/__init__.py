"""The house callbacks, put on every run by the command line; recipes never list them."""
