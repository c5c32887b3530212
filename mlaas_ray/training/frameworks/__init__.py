"""The frameworks, one module each; importing one imports no framework yet."""
